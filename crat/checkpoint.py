"""What is saved of a training at every epoch's end, and how it comes back."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

import crat
from crat import distributed, store
from crat.device import describe
from crat.nets import models
from crat.run import part

if TYPE_CHECKING:
    from crat.train import Trainer


def save(t: Trainer) -> None:
    """History first: a resumed run drops what lies beyond the checkpoint. Best weights last: it holds them too."""
    folder = t.run.folder
    store.write_text(folder / "history.csv", pd.DataFrame(t.rows).to_csv(index=False))
    momentum = {
        name: t.optimizer.state[p]["momentum_buffer"]
        for name, p in t.model.named_parameters()
        if t.optimizer.state.get(p, {}).get("momentum_buffer") is not None
    }
    parts = {
        "model": t.model.state_dict(),
        "momentum": momentum,
        "average": t.average.state if t.average else {},
        "defense": t.defense.state_dict(),
    }
    tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    meta = {"epoch": t.done, "seconds": t.seconds, "best": t.best, "collapsed": t.collapsed}
    meta["averaged"] = t.average.updates if t.average else 0
    meta["gate"] = vars(t.gate) if t.gate else {}
    store.write_tensors(folder / "checkpoint.safetensors", tensors, meta)
    if t.best["epoch"] == t.done:
        _write_best(t)
    write_card(t)


def _write_best(t: Trainer) -> None:
    store.write_tensors(t.run.folder / "best.safetensors", t.judged.state_dict(), {"epoch": t.done})


def write_card(t: Trainer) -> None:
    """What the card says now, to its file."""
    store.write_json(t.run.folder / "card.json", card(t))


def card(t: Trainer) -> dict[str, Any]:
    """What a reader must know of the run; what only a finished one can tell is None until then."""
    finished = t.done >= t.config.epochs
    return {
        "name": t.run.name,
        "config": t.run.config.as_dict(),
        "classes": list(t.images.classes),
        "original_labels": list(t.images.original_labels),
        "epochs_done": t.done,
        "finished": finished,
        "best": t.best,
        "last": {"weights": store.fingerprint(t.current)} if finished else None,
        "collapsed_epochs": t.collapsed,
        **({"accepted_epochs": t.gate.accepted} if t.gate else {}),
        "class_weight_norms": _weight_norms(t) if finished else None,
        "train_seconds": round(t.seconds, 1),
        "device": describe(t.device),
        **({"processes": distributed.world()} if distributed.world() > 1 else {}),
        "versions": {"crat": crat.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _weight_norms(t: Trainer) -> list[float] | None:
    """||w_k|| of the best epoch's last layer, where the head has weights of free length."""
    if t.run.config.model.head not in ("linear", "augmented"):
        return None
    t.judged.load_state_dict(store.read_tensors(t.run.folder / "best.safetensors")[0])
    return [round(norm, 6) for norm in models.class_weight_norms(t.judged).tolist()]


def restore(t: Trainer) -> None:
    """Goes back to the end of the last saved epoch; to the beginning, where the best weights are lost.

    Best weights that are lost and are the last ones are written again by whoever holds the lease (rank 0 only).
    """
    folder = t.run.folder
    tensors, meta = store.read_tensors(folder / "checkpoint.safetensors")
    best = folder / "best.safetensors"
    best_epoch = store.read_tensors(best)[1]["epoch"] if best.exists() else None
    if best_epoch != meta["best"]["epoch"] != meta["epoch"]:
        return
    t.done, t.seconds, t.best = meta["epoch"], meta["seconds"], meta["best"]
    t.collapsed = meta["collapsed"]
    t.model.load_state_dict(part(tensors, "model"))
    for name, buffer in part(tensors, "momentum").items():
        parameter = t.model.get_parameter(name)
        t.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter)
    if t.average:
        t.average.state = {k: v.to(t.device) for k, v in part(tensors, "average").items()}
        t.average.updates = meta["averaged"]
    if t.gate:
        vars(t.gate).update(meta["gate"])
    t.defense.load_state_dict({k: v.to(t.device) for k, v in part(tensors, "defense").items()})
    history = t.run.history()
    t.rows = history[history.epoch <= t.done].to_dict("records")
    if t.config.trace_per_class:
        trace = t.run.trace()
        for name in ("clean", "pgd"):
            t.trace[name] = list(trace[name][: t.done])
    t.judged.load_state_dict(t.current)
    if t.lease and t.lease.held and best_epoch != t.best["epoch"]:
        _write_best(t)
