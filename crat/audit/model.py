"""`crat audit`: any model, whoever trained it, judged class by class."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crat
from crat import data, store
from crat.attacks.door import as_images, check_square
from crat.attacks.search import SearchWarning
from crat.audit import probes
from crat.audit.foreign import CHECKED, decision, examine, find_model, noted
from crat.audit.plan import Plan
from crat.audit.report import class_table, report
from crat.config import ConfigError
from crat.device import describe, pick_device, pick_dtype
from crat.keys.identity import Identity, identity
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import OutcomeCache, Outcomes, Subject
from crat.text import shown
from crat.training.run import classes_in_turn


def audit(
    subject: str,
    plan: Plan,
    architecture: str | None = None,
    *,
    key: str | None = None,
    device: str | None = None,
    out: Path | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> tuple[Path, Outcomes]:
    """Checks the model of `subject` (see `find_model`), judges it, writes the report.

    Returns the folder of the report and the outcomes. Outcomes that were computed before are read:
    they belong to the weights, to the model's code and state, to its answers and gradients on and
    around some images, to the images, labels and class names, and to all of the plan.
    key: which of several weights in a file. out: the folder (None: audits/ in the store). tell:
    gets a line on the model and the images, each warning, and what is read again with its date.
    """
    where = pick_device(device)
    images = _images_of(plan)
    chosen = _chosen(plan, images.y_test)
    x, y = images.x_test[chosen].to(where), images.y_test[chosen].to(where)
    found, doubts = find_model(subject, architecture, images, where, key)
    code = identity(found)
    model = decision(found, as_images(x[:CHECKED]), images.n_classes, plan.logit_slice, plan.scale)
    _, more = examine(model, x, y, images.classes)
    dtype = pick_dtype(plan.dtype, where)
    decided_by = _decided_by(plan, found, code, x, y, images.classes, dtype)
    folder = out or _folder(subject, plan, decided_by)
    before = _card_before(folder)
    answers = probes.probe(model, x, y, plan.radius, plan.norm)
    decided_by["answers"] = probes.recognised(folder / "eval", answers)
    unread = [f"{part} is part of the model and no key can hold it" for part in code.unread]
    card = asdict(plan) | {
        "audit": _digest(plan, decided_by),
        "subject": subject,
        "model": architecture or type(found).__name__,
        "parameters": sum(parameter.numel() for parameter in found.parameters()),
        "weights": decided_by["weights"],
        "images": len(x),
        "dtype": dtype,
        "device": describe(where),
        "attacks": {name: repr(attack) for name, attack in plan.battery.items()},
        "warnings": doubts + more + unread,
        "versions": _versions(),
    }
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
    same = before.get("audit") == card["audit"]
    took = (before["seconds"] if same else {}) | {
        name: round(seconds, 1) for name, seconds in cache.seconds.items()
    }
    card["warnings"] = card["warnings"] + warnings
    card["seconds"] = {name: took[name] for name in plan.battery if name in took}
    report(folder, card, plan.battery, outcomes)
    return folder, outcomes


def _images_of(plan: Plan) -> data.Dataset:
    if plan.data == "imagenet":
        return data.imagenet_validation(plan.images)
    return data.load(plan.data)


def _chosen(plan: Plan, y: Tensor) -> Tensor | slice:
    """The places of the images that are judged, spread over the classes."""
    if plan.data == "imagenet" or not plan.images:
        return slice(None)
    return classes_in_turn(y)[: plan.images]


def _label(subject: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(subject).name)


def _digest(plan: Plan, decided_by: dict[str, Any]) -> str:
    return store.digest([decided_by, plan.eps, plan.norm])


def _folder(subject: str, plan: Plan, decided_by: dict[str, Any]) -> Path:
    return store.home() / "audits" / f"{_label(subject)}-{_digest(plan, decided_by)}"


def _versions() -> dict[str, str]:
    return {
        "crat": crat.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _tell_of(card: dict[str, Any], tell: Callable[[str], None]) -> None:
    """The lines that come before the attacks."""
    of_model = f"{card['parameters']:,} parameters, weights {card['weights']}"
    tell(f"{card['subject']}: {card['model']}, {of_model}")
    of_images = f"{card['images']} test images, {card['norm']} {card['eps']}"
    tell(f"{card['data']}: {of_images}, search in {card['dtype']}")
    for line in card["warnings"]:
        tell(f"warning: {line}")


def _judged(
    cache: OutcomeCache, battery: Battery, classes: Sequence[str], tell: Callable[[str], None]
) -> tuple[Outcomes, list[str]]:
    """The outcomes under a battery, and the warnings of it, told as well.

    `examine` and `_masked` warn of all images, the battery by batches: its warnings are left out.
    """
    with noted(), noted(SearchWarning) as slower:
        outcomes = cache.of(battery, "test", classes)
    warnings = slower + _masked(outcomes)
    for line in warnings:
        tell(f"warning: {line}")
    return outcomes, warnings


def _card_before(folder: Path) -> dict[str, Any]:
    """The card of an earlier audit, {} before the first; raises ConfigError where the folder
    holds other things.
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
    x: Tensor,
    y: Tensor,
    classes: Sequence[str],
    dtype: str,
) -> dict[str, Any]:
    """All that decides an outcome besides the attack and what the model answers around some images
    (crat.audit.probes).

    code: of the model's classes, functions, hooks and state; where something in it cannot be read,
    no other audit has the same.
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
        "images": store.fingerprint({"x": x, "y": y}),
        "classes": list(classes),
        "code": code.text,
        "unread": time.time_ns() if code.unread else None,
    }


def _masked(found: Outcomes) -> list[str]:
    with noted() as lines:
        for name, broken_by in found.broken_by.items():
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
) -> None:
    """What `crat audit` does: the checks, the table, and where the files are."""
    settings: dict[str, Any] = {"progress": sys.stderr.isatty(), "tell": partial(print, flush=True)}
    place = Path(out).expanduser() if out else None
    folder, found = audit(
        subject, plan, architecture, key=key, device=device, out=place, **settings
    )
    print(
        f"\n{class_table(found)}\n\n{shown(folder)}: "
        f"{', '.join(sorted(p.name for p in folder.glob('*.*')))}"
    )
