"""The audit of any model, class by class: `crat audit`, and from Python `audit_model`."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import crat
from crat import data, store
from crat.analysis.two_phase import Design
from crat.attacks.door import as_images, check_model
from crat.attacks.looked import SearchWarning
from crat.attacks.watched import check_square
from crat.audit import arrays, certified, probes
from crat.audit.foreign import (
    CHECKED,
    Found,
    Resized,
    decision,
    examine,
    find_model,
    in_train_mode,
    noted,
)
from crat.audit.plan import Plan
from crat.audit.report import report
from crat.config import ConfigError, as_written
from crat.data import Streamed
from crat.data.images import chosen_of, classes_in_turn
from crat.device import describe, pick_device, pick_dtype
from crat.keys.identity import Identity, identity
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.outcomes.sampled import Sampled
from crat.outcomes.tables import class_table, estimate_table
from crat.text import shown


class Audit(NamedTuple):
    """The result of an audit.

    folder: of the report.
    outcomes: on all images, under each attack on all of them.
    sampled: those of AutoAttack on a sample, where the plan asks for them.
    """

    folder: Path
    outcomes: Outcomes
    sampled: Sampled | None


class Images(NamedTuple):
    """The images to judge: x (N, C, H, W), uint8 or in [0, 1]; y (N,); the names of the classes."""

    x: Tensor | Streamed
    y: Tensor
    classes: Sequence[str]


class Told(NamedTuple):
    """The place of the report (None: in the store), a progress bar or none, who receives lines."""

    out: Path | None
    progress: bool
    tell: Callable[[str], None]


def audit(
    subject: str,
    plan: Plan,
    architecture: str | None = None,
    *,
    key: str | None = None,
    weights: Path | None = None,
    device: str | None = None,
    out: Path | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> Audit:
    """Checks the model of `subject` (see `find_model`), judges it and writes the report.

    Stored outcomes are read where all of this is the same: the weights, the model's code and state,
    its logits and gradients on and around some images, the images, labels and class names, and the
    plan.
    key: the state_dict to use, where a weights file has several.
    weights: a file of weights for the network of "file.py:Class".
    out: the folder (None: in audits/ of the store).
    tell: receives a line about the model, one about the images, one for each warning, and one with
    a date about outcomes that are read.
    Raises as `find_model`, `decision` and `examine` do.
    """
    where = pick_device(device)
    images = _images_of(plan)
    found = find_model(subject, architecture, images, where, key, weights)
    chosen = _chosen(plan, images.y_test)
    x = chosen_of(images.x_test, chosen).to(where)
    y = images.y_test[chosen].to(where)
    name = architecture or type(found[0]).__name__
    told = Told(out, progress, tell)
    return _audited(subject, name, found, plan, Images(x, y, images.classes), told)


def audit_model(
    model: nn.Module,
    samples: arrays.Samples,
    classes: Sequence[str],
    eps: str | float,
    *,
    name: str = "",
    out: Path | str | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = print,
    **plan: Any,
) -> Audit:
    """Judges a model on images that you hold; the same checks, files and keys as `crat audit`.

    model: takes images (N, C, H, W) in [0, 1] and gives logits (N, K). It is judged in eval mode,
        on the device of its weights, and left as it was.
    samples: a DataLoader of batches (x, y), a Dataset, or a pair (x, y) of tensors or arrays; x is
        uint8 or a float in [0, 1], y whole numbers in 0..K-1.
    classes: the names of the K classes, in the order of the labels.
    eps: radius in [0, 1], such as "8/255" or 8 / 255; of another norm its own.
    name: of the model in the card and the figures ("": its class).
    out, tell: as for `audit`.
    plan: further fields of `Plan`: norm, images (1000; 0: all, and AutoAttack on a sample),
        attacks, logit_slice, scale, resize, dtype, seed, certify.
    Raises DataError and AttackError on images and labels, ConfigError on the plan, ModelError and
    AttackError on the model; each is one line.
    """
    check_model(model)
    x, y, names = arrays.admitted(samples, classes)
    asked = Plan(arrays.named(x, y, names), as_written(eps), **plan)
    chosen = _chosen(asked, y)
    where = next((part.device for part in model.state_dict().values()), torch.device("cpu"))
    images = Images(x[chosen].to(where), y[chosen].to(where), names)
    kind = type(model).__name__
    told = Told(Path(out).expanduser() if out else None, progress, tell)
    return _audited(name or kind, kind, (model, in_train_mode(model)), asked, images, told)


def _audited(
    subject: str, kind: str, found: Found, plan: Plan, images: Images, told: Told
) -> Audit:
    """The audit of a model that was found, with doubts about it; kind: its architecture or class.

    The images and the model are on one device.
    """
    foreign, doubts = found
    x, y, classes = images
    if plan.resize:
        foreign = Resized(foreign, plan.resize)
    code = identity(foreign)
    few = as_images(x[:CHECKED])
    model = decision(foreign, few, len(classes), plan.logit_slice, plan.scale)
    if plan.certify:
        certified.refuse(foreign, few, y, plan.radius)
    _, more = examine(model, x, y, classes)
    dtype = pick_dtype(plan.dtype, x.device)
    decided_by = _decided_by(plan, foreign, code, x, y, classes, dtype)
    folder = told.out or _folder(subject, plan, decided_by)
    before = _card_before(folder)
    answers = probes.probe(model, x, y, plan.radius, plan.norm)
    decided_by["answers"] = probes.recognised(folder / "eval", answers)
    unread = [f"{part} is part of the model and no key can hold it" for part in code.unread]
    warned = doubts + more + unread
    card = _card(subject, kind, foreign, plan, decided_by, x.device, warned)
    _tell_of(card, told.tell)
    cache = OutcomeCache(
        _label(subject),
        [folder],
        decided_by,
        lambda: Subject(model, None, x, y),
        told.progress,
        tell=told.tell,
    )
    outcomes, warnings = _judged(cache, plan.battery, classes, told.tell)
    card["warnings"] = card["warnings"] + warnings
    sampled = _sampled(cache, plan, outcomes, told.tell) if plan.on_sample else None
    if sampled and sampled.warning:
        card["warnings"] = [*card["warnings"], sampled.warning]
    seconds = before["seconds"] if before.get("audit") == card["audit"] else {}
    seconds |= {name: round(took, 1) for name, took in cache.seconds.items()}
    attacks = {**plan.battery, **plan.on_sample}
    card["seconds"] = {name: seconds[name] for name in attacks if name in seconds}
    bracket = None
    if plan.certify:
        bracket, card["certified"] = certified.certify(
            foreign, x, y, outcomes, plan.radius, told.progress
        )
    report(folder, card, attacks, outcomes, sampled)
    certified.write(folder, bracket)
    return Audit(folder, outcomes, sampled)


def _card(
    subject: str,
    name: str,
    model: nn.Module,
    plan: Plan,
    decided_by: dict[str, Any],
    device: torch.device,
    warnings: list[str],
) -> dict[str, Any]:
    """The card of an audit before its attacks; name: of the model's architecture or class."""
    return asdict(plan) | {
        "audit": _digest(plan, decided_by),
        "subject": subject,
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": decided_by["weights"],
        "images": decided_by["first"],
        "dtype": decided_by["dtype"],
        "device": describe(device),
        "attacks": {name: repr(plan.known[name]) for name in (*plan.battery, *plan.on_sample)},
        "warnings": warnings,
        "versions": _versions(),
    }


def _images_of(plan: Plan) -> data.Dataset:
    if plan.data == "imagenet":
        return data.imagenet_validation(plan.images)
    return data.load(plan.data)


def _chosen(plan: Plan, y: Tensor) -> Tensor | slice:
    """The indices of the images to judge, spread over the classes."""
    if plan.data == "imagenet" or not plan.images:
        return slice(None)
    return classes_in_turn(y)[: plan.images]


def _label(subject: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(subject).name)


def _digest(plan: Plan, decided_by: dict[str, Any]) -> str:
    return store.digest([decided_by, plan.eps, plan.norm])


def _of_images(x: Tensor | Streamed, y: Tensor) -> str:
    """A hash of images and labels; of files, by their names and sizes."""
    if isinstance(x, Streamed):
        return store.digest([x.fingerprint(), y.tolist()])
    return store.fingerprint({"x": x, "y": y})


def _folder(subject: str, plan: Plan, decided_by: dict[str, Any]) -> Path:
    return store.home() / "audits" / f"{_label(subject)}-{_digest(plan, decided_by)}"


def _versions() -> dict[str, str]:
    return {
        "crat": crat.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _tell_of(card: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Tells of the model, of the images and of the warnings so far."""
    size = f"{card['parameters']:,} parameters"
    tell(f"{card['subject']}: {card['model']}, {size}, weights {card['weights']}")
    threat = f"{card['norm']} {card['eps']}"
    tell(f"{card['data']}: {card['images']} test images, {threat}, search in {card['dtype']}")
    for line in card["warnings"]:
        tell(f"warning: {line}")


def _judged(
    cache: OutcomeCache, battery: Battery, classes: Sequence[str], tell: Callable[[str], None]
) -> tuple[Outcomes, list[str]]:
    """The outcomes under a battery, and the warnings about it, which are also told.

    The battery's own RobustnessWarnings, one for each batch, are dropped: `examine` and `_masked`
    give them for all images together.
    """
    with noted(), noted(SearchWarning) as slower:
        outcomes = cache.of(battery, "test", classes)
    warnings = slower + _masked(outcomes)
    for line in warnings:
        tell(f"warning: {line}")
    return outcomes, warnings


def _sampled(
    cache: OutcomeCache, plan: Plan, outcomes: Outcomes, tell: Callable[[str], None]
) -> Sampled:
    """AutoAttack on a sample of the images, whose outcomes lie beside those of `cache`."""

    def attack(places: np.ndarray) -> Outcomes:
        model, _, x, y = cache.load()
        chosen = torch.from_numpy(places).to(x.device)
        part = Subject(model, None, chosen_of(x, chosen), y[chosen])
        images = {"first": len(places), "images": _of_images(part.x, part.y)}
        on_part = replace(cache, decided_by=cache.decided_by | images, load=lambda: part)
        found, _ = _judged(on_part, plan.on_sample, outcomes.classes, tell)
        return found

    # the hunter has broken what is hard: taken whole, it doubled the cost and told nothing more
    design = Design(hard=0.0, seed=plan.seed)
    sampled = Sampled.of(outcomes, plan.phase_one, design, attack)
    if sampled.warning:
        tell(f"warning: {sampled.warning}")
    return sampled


def _card_before(folder: Path) -> dict[str, Any]:
    """The card of an earlier audit in a folder; {} if there is none.

    Raises ConfigError where the folder holds something else.
    """
    if not (folder / "card.json").exists():
        return {}
    card = store.read_json(folder / "card.json")
    if "audit" not in card:
        raise ConfigError(f"{folder} holds something else than an audit: give another --out")
    return card


def _decided_by(
    plan: Plan,
    model: nn.Module,
    code: Identity,
    x: Tensor | Streamed,
    y: Tensor,
    classes: Sequence[str],
    dtype: str,
) -> dict[str, Any]:
    """Everything that decides an outcome, except the attack and the answers to the probes.

    code: the identity of the model's classes, functions, hooks and state. Where a part of it cannot
    be read, the result is unique to this audit.
    x: (N, C, H, W). y: (N,). dtype: of the search, resolved.
    """
    tensors = {
        name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)
    }
    return {
        "split": "test",
        "first": len(x),
        "data": plan.data,
        "seed": plan.seed,
        "dtype": dtype,
        "crafted_on": None,
        "weights": store.fingerprint(tensors),
        "logit_slice": plan.logit_slice,
        "scale": plan.scale,
        "images": _of_images(x, y),
        "classes": list(classes),
        "code": code.text,
        "unread": time.time_ns() if code.unread else None,
    }


def _masked(outcomes: Outcomes) -> list[str]:
    """Warnings where Square, which needs no gradient, broke images that gradients did not."""
    with noted() as lines:
        for name, broken_by in outcomes.broken_by.items():
            if name == "AA":
                check_square(int((broken_by == "square").sum()), len(broken_by))
    return lines


def main(
    subject: str,
    architecture: str | None,
    plan: Plan,
    device: str | None,
    out: Path | None,
    key: str | None = None,
    weights: str | None = None,
) -> Audit:
    """Runs `crat audit`: prints the checks, the table and the files; returns the result."""
    judged = audit(
        subject,
        plan,
        architecture,
        key=key,
        weights=Path(weights).expanduser() if weights else None,
        device=device,
        out=out,
        progress=sys.stderr.isatty(),
        tell=partial(print, flush=True),
    )
    folder = judged.folder
    files = ", ".join(sorted(path.name for path in folder.glob("*.*")))
    estimates = f"\n\n{estimate_table(judged.sampled)}" if judged.sampled else ""
    bracket = certified.text(folder)
    print(f"\n{class_table(judged.outcomes)}{estimates}{bracket}\n\n{shown(folder)}: {files}")
    return judged
