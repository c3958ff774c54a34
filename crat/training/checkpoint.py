"""The files of a training at an epoch's end: written in an order that a kill cannot harm, read
back to go on."""

from __future__ import annotations

import platform
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import crat
from crat import distributed, store
from crat.data.images import Dataset
from crat.device import describe
from crat.nets import models
from crat.training.run import Run, build_model
from crat.training.state import TrainState

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"


def save(run: Run, state: TrainState, judged: dict[str, Tensor], images: Dataset) -> None:
    """Writes history, checkpoint, best weights and card.

    History goes first: a resumed run drops what lies beyond the checkpoint. Best weights go last:
    the checkpoint holds them too. judged: the weights that validation has just judged.
    """
    store.write_text(run.folder / "history.csv", pd.DataFrame(state.rows).to_csv(index=False))
    store.write_tensors(run.folder / CHECKPOINT, *state.state_dict())
    if state.best["epoch"] == state.epochs_done:
        write_best(run, state, judged)
    write_card(run, state, images)


def write_best(run: Run, state: TrainState, judged: dict[str, Tensor]) -> None:
    """The weights of the chosen epoch."""
    store.write_tensors(run.folder / BEST, judged, {"epoch": state.epochs_done})


def write_card(run: Run, state: TrainState, images: Dataset) -> None:
    """The card as it is now, to its file."""
    store.write_json(run.folder / "card.json", card(run, state, images))


def card(run: Run, state: TrainState, images: Dataset) -> dict[str, Any]:
    """All that a reader must know of the run; what only a finished one can tell is None until
    then.
    """
    finished = state.epochs_done >= run.config.train.epochs
    processes = distributed.world()
    return {
        "name": run.name,
        "config": run.config.as_dict(),
        "classes": list(images.classes),
        "original_labels": list(images.original_labels),
        "epochs_done": state.epochs_done,
        "finished": finished,
        "best": state.best,
        "last": {"weights": store.fingerprint(state.weights)} if finished else None,
        "collapsed_epochs": state.collapsed,
        **({"accepted_epochs": state.gate.accepted} if state.gate else {}),
        "class_weight_norms": _weight_norms(run) if finished else None,
        "train_seconds": round(state.seconds, 1),
        "device": describe(images.x_train.device),
        **({"processes": processes} if processes > 1 else {}),
        "versions": {
            "crat": crat.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _weight_norms(run: Run) -> list[float] | None:
    """||w_k|| of the best epoch's last layer, where the head has weights of free length."""
    if run.config.model.head not in ("linear", "augmented"):
        return None
    network = build_model(run.config)
    network.load_state_dict(store.read_tensors(run.folder / BEST)[0])
    return [round(norm, 6) for norm in models.class_weight_norms(network).tolist()]


def restore(run: Run, state: TrainState) -> bool:
    """Goes back to the end of the last saved epoch; to the beginning, where the best weights are
    lost. Returns whether the best weights are lost and are the restored ones: `write_best` brings
    them back.
    """
    tensors, meta = store.read_tensors(run.folder / CHECKPOINT)
    best = run.folder / BEST
    best_epoch = store.read_tensors(best)[1]["epoch"] if best.exists() else None
    lost = best_epoch != meta["best"]["epoch"]
    if lost and meta["best"]["epoch"] != meta["epoch"]:
        return False
    state.load_state_dict(tensors, meta)
    history = run.history()
    state.rows = history[history.epoch <= state.epochs_done].to_dict("records")
    if run.config.train.trace_per_class:
        trace = run.trace()
        for name in ("clean", "pgd"):
            state.trace[name] = list(trace[name][: state.epochs_done])
    return lost
