"""The files of a training at the end of an epoch, written in an order that a kill cannot harm."""

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
from crat.training.run import WEIGHTS, Run, build_model
from crat.training.state import TrainState

CHECKPOINT = "checkpoint.safetensors"


def save(run: Run, state: TrainState, judged: dict[str, Tensor], images: Dataset) -> None:
    """Writes history, checkpoint, best weights and card.

    judged: the weights that validation has just judged.
    The history comes before the checkpoint: a resumed run drops rows beyond the checkpoint. The
    best weights come after it: they can be restored from the checkpoint.
    """
    history = pd.DataFrame(state.rows).to_csv(index=False, lineterminator="\n")
    store.write_text(run.folder / "history.csv", history)
    store.write_tensors(run.folder / CHECKPOINT, *state.state_dict())
    if state.best["epoch"] == state.epochs_done:
        write_best(run, state, judged)
    write_card(run, state, images)


def write_best(run: Run, state: TrainState, judged: dict[str, Tensor]) -> None:
    """Writes the weights of the chosen epoch."""
    store.write_tensors(run.folder / WEIGHTS, judged, {"epoch": state.epochs_done})


def write_card(run: Run, state: TrainState, images: Dataset) -> None:
    """Writes the present card."""
    store.write_json(run.folder / "card.json", card(run, state, images))


def card(run: Run, state: TrainState, images: Dataset) -> dict[str, Any]:
    """The card of a run: settings, data, epochs, chosen epoch, device and versions.

    Entries that need the finished training are None before its end.
    """
    finished = state.epochs_done >= run.config.train.epochs
    processes = distributed.world()
    return {
        "name": run.name,
        "config": run.config.as_dict(),
        "classes": list(images.classes),
        "original_labels": list(images.original_labels),
        **({"start_from": state.start} if state.start else {}),
        **({"teacher": state.teacher} if state.teacher else {}),
        "epochs_done": state.epochs_done,
        "finished": finished,
        "best": state.best,
        "last": {"weights": store.fingerprint(state.weights)} if finished else None,
        "collapsed_epochs": state.collapsed,
        **({"accepted_epochs": state.gate.accepted} if state.gate else {}),
        "class_weight_norms": _weight_norms(run) if finished else None,
        "train_seconds": round(state.seconds, 1),
        "device": describe(images.x_train.device),
        **({"step": state.way} if state.way != "eager" else {}),
        **({"processes": processes} if processes > 1 else {}),
        "versions": {
            "crat": crat.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _weight_norms(run: Run) -> list[float] | None:
    """||w_k|| of the best epoch's last layer; None where the head normalises its weights."""
    if run.config.model.head not in ("linear", "augmented"):
        return None
    network = build_model(run.config)
    network.load_state_dict(store.read_tensors(run.folder / WEIGHTS)[0])
    return [round(norm, 6) for norm in models.class_weight_norms(network).tolist()]


def restore(run: Run, state: TrainState) -> bool:
    """Sets the state to the end of the last saved epoch; returns whether to write the best weights.

    True: the file of the best weights is lost, and the checkpoint is of that very epoch. Where the
    checkpoint is of another epoch, the state stays as it is, and training starts from the
    beginning.
    Raises StoreError where the training began with other weights, its own or its teacher's, than
    the state did.
    """
    tensors, meta = store.read_tensors(run.folder / CHECKPOINT)
    best_epoch = meta["best"]["epoch"]
    best_file = run.folder / WEIGHTS
    saved_epoch = store.read_tensors(best_file)[1]["epoch"] if best_file.exists() else None
    lost = saved_epoch != best_epoch
    if lost and best_epoch != meta["epoch"]:
        return False
    for entry, now, name in (
        ("start_from", state.start, run.config.train.start_from),
        ("teacher", state.teacher, run.config.train.teacher),
    ):
        if meta.get(entry, {}) != now:
            raise store.StoreError(
                f"{run.name} began with other weights of {name} than are there now; "
                f"remove {run.folder} to train it anew"
            )
    state.load_state_dict(tensors, meta)
    history = run.history()
    state.rows = history[history.epoch <= state.epochs_done].to_dict("records")
    if run.config.train.trace_per_class:
        trace = run.trace()
        for name in ("clean", "pgd"):
            state.trace[name] = list(trace[name][: state.epochs_done])
    return lost
