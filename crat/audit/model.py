"""The audit of any model, class by class: `crat audit`."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import crat
from crat import data, store
from crat.analysis.two_phase import Design
from crat.attacks.door import as_images
from crat.attacks.looked import SearchWarning
from crat.attacks.watched import check_square
from crat.audit import probes
from crat.audit.foreign import CHECKED, Resized, decision, examine, find_model, noted
from crat.audit.plan import Plan
from crat.audit.report import class_table, estimate_table, report
from crat.config import ConfigError
from crat.data import Streamed
from crat.data.images import Images, chosen_of, classes_in_turn
from crat.device import describe, pick_device, pick_dtype
from crat.keys.identity import Identity, identity
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.outcomes.sampled import Sampled
from crat.text import shown


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
) -> tuple[Path, Outcomes, Sampled | None]:
    """Checks the model of `subject` (see `find_model`), judges it and writes the report.

    Returns the folder of the report, the outcomes on all images, and those of AutoAttack on a
    sample where the plan asks for them. Stored outcomes are read where all of this is
    the same: the weights, the model's code and state, its logits and gradients on and around some
    images, the images, labels and class names, and the plan.
    key: the state_dict to use, where a weights file has several.
    weights: a file of weights for the network of "file.py:Class".
    out: the folder (None: in audits/ of the store).
    tell: receives a line about the model, one about the images, one for each warning, and one with
    a date about outcomes that are read.
    Raises as `find_model`, `decision` and `examine` do.
    """
    where = pick_device(device)
    images = _images_of(plan)
    chosen = _chosen(plan, images.y_test)
    x = chosen_of(images.x_test, chosen).to(where)
    y = images.y_test[chosen].to(where)
    foreign, doubts = find_model(subject, architecture, images, where, key, weights)
    if plan.resize:
        foreign = Resized(foreign, plan.resize)
    code = identity(foreign)
    few = as_images(x[:CHECKED])
    model = decision(foreign, few, images.n_classes, plan.logit_slice, plan.scale)
    _, more = examine(model, x, y, images.classes)
    dtype = pick_dtype(plan.dtype, where)
    decided_by = _decided_by(plan, foreign, code, x, y, images.classes, dtype)
    folder = out or _folder(subject, plan, decided_by)
    before = _card_before(folder)
    answers = probes.probe(model, x, y, plan.radius, plan.norm)
    decided_by["answers"] = probes.recognised(folder / "eval", answers)
    unread = [f"{part} is part of the model and no key can hold it" for part in code.unread]
    inner = foreign.network if isinstance(foreign, Resized) else foreign
    name = architecture or type(inner).__name__
    card = _card(subject, name, foreign, plan, decided_by, where, doubts + more + unread)
    _tell_of(card, tell)
    cache = OutcomeCache(
        _label(subject),
        [folder],
        decided_by,
        lambda: Subject(model, None, x, y),
        progress,
        tell=tell,
    )
    outcomes, warnings = _judged(cache, plan.battery, images.classes, tell)
    card["warnings"] = card["warnings"] + warnings
    sampled = _sampled(cache, plan, outcomes, tell) if plan.on_sample else None
    if sampled and sampled.warning:
        card["warnings"] = [*card["warnings"], sampled.warning]
    seconds = before["seconds"] if before.get("audit") == card["audit"] else {}
    seconds |= {name: round(took, 1) for name, took in cache.seconds.items()}
    attacks = {**plan.battery, **plan.on_sample}
    card["seconds"] = {name: seconds[name] for name in attacks if name in seconds}
    report(folder, card, attacks, outcomes, sampled)
    return folder, outcomes, sampled


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


def _of_images(x: Images, y: Tensor) -> str:
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

    design = Design(seed=plan.seed)
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
    x: Images,
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
    out: str | None,
    key: str | None = None,
    weights: str | None = None,
) -> Outcomes:
    """Runs `crat audit`: prints the checks, the table and the files; returns the outcomes."""
    folder, outcomes, sampled = audit(
        subject,
        plan,
        architecture,
        key=key,
        weights=Path(weights).expanduser() if weights else None,
        device=device,
        out=Path(out).expanduser() if out else None,
        progress=sys.stderr.isatty(),
        tell=partial(print, flush=True),
    )
    files = ", ".join(sorted(path.name for path in folder.glob("*.*")))
    estimates = f"\n\n{estimate_table(sampled)}" if sampled else ""
    print(f"\n{class_table(outcomes)}{estimates}\n\n{shown(folder)}: {files}")
    return outcomes
