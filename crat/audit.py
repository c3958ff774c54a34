"""`crat audit`: any model, whoever trained it, judged class by class: a card, tables with intervals, figures."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import crat
from crat import data, metrics, probes, store
from crat.attacks import FGSM, Attack, AutoAttack, Square, checks, cw
from crat.attacks.judge import as_images
from crat.attacks.search import SearchWarning
from crat.attacks.threat import NORMS
from crat.config import DATASETS, DTYPES, PROTOCOLS, ConfigError, as_written, number
from crat.device import describe, pick_device, pick_dtype
from crat.evaluate import protocol_pgd
from crat.foreign import CHECKED, decision, examine, find_model, noted
from crat.identity import Identity, identity
from crat.names import one_of
from crat.run import classes_in_turn
from crat.text import aligned, shown
from crat.verdicts import Battery, Outcomes, Subject, Verdicts

DRAWN = 20  # classes in a figure; of more, the worst


@dataclass(frozen=True)
class Plan:
    """On what a model is judged, and how; raises ConfigError on what cannot be.

    eps: radius as it is written, "8/255" (None: that of the data set's protocol, L-inf). images: so many test images,
    spread over the classes (0: all). attacks: names out of `known` (none: FGSM, PGD, CW and AA; in L1 AA alone).
    logit_slice: so many logits answer, the first. scale: of cosine logits. dtype: of the search (the verdict: float32).
    """

    data: str
    eps: str | None = None
    norm: str = "Linf"
    images: int = 1000
    attacks: tuple[str, ...] = ()
    logit_slice: int | None = None
    scale: float = 1.0
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        names = (("data", "data set", DATASETS), ("norm", "norm", NORMS), ("dtype", "dtype", DTYPES))
        for setting, what, allowed in names:
            object.__setattr__(self, setting, one_of(what, getattr(self, setting), allowed))
        if self.eps is None and self.norm != "Linf":
            raise ConfigError(f"{self.norm} needs an eps: the protocol of {self.data} has one for Linf only")
        object.__setattr__(self, "eps", as_written(PROTOCOLS[self.data].eps if self.eps is None else self.eps))
        if not 0 < self.radius < (1 if self.norm == "Linf" else np.inf):
            range_ = "between 0 and 1, such as 8/255" if self.norm == "Linf" else "above 0 and finite"
            raise ConfigError(f"eps in {self.norm} is {range_}, not {self.eps}")
        if not 0 < self.scale < np.inf or self.images < 0 or (self.logit_slice or 2) < 2:
            told = f"{self.scale:g}, {self.images} and {self.logit_slice}"
            raise ConfigError(f"scale is above 0, images at least 0 and logit_slice at least 2, not {told}")
        object.__setattr__(self, "attacks", tuple(one_of("attack", name, self.known) for name in self.attacks))

    @property
    def radius(self) -> float:
        """eps as a number."""
        return number(self.eps or 0)

    @property
    def known(self) -> Battery:
        """Name -> attack, all that may be asked for; PGD's step keeps its ratio to eps in the protocol."""
        eps, norm, pgd = self.radius, self.norm, protocol_pgd(self.data)
        pgd = replace(pgd, eps=eps, step_size=pgd.step_size * (eps / pgd.eps), norm=norm)
        attacks: dict[str, Attack | AutoAttack] = {}
        if norm != "L1":  # there a step of these moves one pixel
            attacks = {"FGSM": FGSM(eps, norm), f"PGD-{pgd.steps}": pgd, f"CW-{pgd.steps}": cw(pgd)}
        versions = {"AA": "standard", "AA-plus": "plus", "AA-rand": "rand"}
        return attacks | {"Square": Square(eps, norm)} | {k: AutoAttack(eps, norm, v) for k, v in versions.items()}

    @property
    def battery(self) -> Battery:
        """Name -> attack, in the order in which they run."""
        usual = [name for name in self.known if name not in ("Square", "AA-plus", "AA-rand")]
        return {name: self.known[name] for name in self.attacks or usual}


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
    """Checks the model of `subject` (see `find_model`), judges it, writes the report; its folder and the outcomes.

    What is kept is read: outcomes belong to the weights, to the model's code and state, to what it answers and which
    gradients it gives on and around some images, to the images, labels and class names, and to all of the plan.
    key: which of several weights in a file. out: the folder (None: audits/ in the store). tell: gets a line on what is
    judged, each warning (kept or not), and what is read again with its date.
    """
    where = pick_device(device)
    images = data.imagenet_validation(plan.images) if plan.data == "imagenet" else data.load(plan.data)
    chosen = (
        slice(None) if plan.data == "imagenet" or not plan.images else classes_in_turn(images.y_test)[: plan.images]
    )
    x, y = images.x_test[chosen].to(where), images.y_test[chosen].to(where)
    found, doubts = find_model(subject, architecture, images, where, key)
    code = identity(found)
    model = decision(found, as_images(x[:CHECKED]), images.n_classes, plan.logit_slice, plan.scale)
    _, more = examine(model, x, y, images.classes)
    dtype = pick_dtype(plan.dtype, where)
    decided_by = _decided_by(plan, found, code, x, y, images.classes, dtype)
    label = re.sub(r"[^\w.-]+", "-", Path(subject).name)
    folder = out or store.home() / "audits" / f"{label}-{store.digest([decided_by, plan.eps, plan.norm])}"
    before = _card_before(folder)
    decided_by["answers"] = probes.recognised(folder / "eval", probes.probe(model, x, y, plan.radius, plan.norm))
    name = store.digest([decided_by, plan.eps, plan.norm])
    seconds = before["seconds"] if before.get("audit") == name else {}
    parameters = sum(parameter.numel() for parameter in found.parameters())
    card = asdict(plan) | {
        "audit": name, "subject": subject, "model": architecture or type(found).__name__, "parameters": parameters,
        "weights": decided_by["weights"], "images": len(x), "dtype": dtype, "device": describe(where),
        "attacks": {name: repr(attack) for name, attack in plan.battery.items()},
        "warnings": doubts + more + [f"{part} is part of the model and no key can hold it" for part in code.unread],
        "versions": {"crat": crat.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    tell(f"{subject}: {card['model']}, {parameters:,} parameters, weights {card['weights']}")
    tell(f"{plan.data}: {len(x)} test images, {plan.norm} {plan.eps}, search in {dtype}")
    for line in card["warnings"]:
        tell(f"warning: {line}")
    verdicts = Verdicts(label, [folder], decided_by, lambda: Subject(model, None, x, y), progress, tell=tell)
    with noted(), noted(SearchWarning) as slower:  # `examine` and `_masked` warn of all images, the battery by batches
        outcomes = verdicts.of(plan.battery, "test", images.classes)
    for line in (after := slower + _masked(outcomes)):
        tell(f"warning: {line}")
    seconds |= {name: round(took, 1) for name, took in verdicts.seconds.items()}
    seconds = {attack: seconds[attack] for attack in plan.battery if attack in seconds}
    report(folder, card | {"warnings": card["warnings"] + after, "seconds": seconds}, plan.battery, outcomes)
    return folder, outcomes


def _card_before(folder: Path) -> dict[str, Any]:
    """The card of an earlier audit, {} before the first; raises ConfigError where the folder holds other things."""
    if not (folder / "card.json").exists():
        return {}
    card = store.read_json(folder / "card.json")
    if "audit" not in card:
        raise ConfigError(f"{folder} holds something else than an audit: give another --out")
    return card


def _decided_by(
    plan: Plan, model: nn.Module, code: Identity, x: Tensor, y: Tensor, classes: Sequence[str], dtype: str
) -> dict[str, Any]:
    """All that decides an outcome besides the attack and what the model answers around some images (crat.probes).

    code: of the model's classes, functions, hooks and state; where something in it cannot be read, no other audit has
    the same.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {
        "split": "test", "first": len(x), "data": plan.data, "seed": plan.seed, "dtype": dtype, "crafted_on": None,
        "weights": store.fingerprint(tensors), "logit_slice": plan.logit_slice, "scale": plan.scale,
        "images": store.fingerprint({"x": x, "y": y}), "classes": list(classes), "code": code.text,
        "unread": time.time_ns() if code.unread else None,
    }  # fmt: skip


def _masked(found: Outcomes) -> list[str]:
    with noted() as lines:
        for name, broken_by in found.broken_by.items():
            if name == "AA":
                checks.check_square(int((broken_by == "square").sum()), len(broken_by))
    return lines


def report(folder: Path, card: dict[str, Any], battery: Battery, found: Outcomes) -> None:
    """Writes card.json, class_wise.csv, broken_by.csv, and the figures class_bars and confusion beside their tables."""
    attacks = {name: found.predictions[name] for name in battery}
    summary, results = _of_present_classes(found, attacks), {}
    right = metrics.outcomes(found.y, found.clean, attacks)
    for row in metrics.totals(found.y, found.clean, attacks).itertuples():
        classes = summary[summary.attack == row.attack].set_index("class")
        # Wilson's of all images: right where classes are equally large, a little wide where they differ in accuracy
        around = metrics.wilson(row.average * len(found.y), len(found.y))
        results[row.attack] = {
            "average": row.average, "average_interval": [float(end) for end in around],
            "share": float(right[row.attack].mean()), "worst": row.worst,
            "worst_class": classes.robust_acc.idxmin(), "worst_interval": [row.worst_low, row.worst_high],
        }  # fmt: skip
    _write_csv(folder / "class_wise.csv", summary)
    (folder / "broken_by.csv").unlink(missing_ok=True)  # of an earlier plan
    if found.broken_by:
        _write_csv(folder / "broken_by.csv", broken_by(found, battery))
    last, name = list(battery)[-1], Path(card["subject"]).name
    average = f"average of classes {100 * results[last]['average']:.1f} %"
    title = f"{name} under {last}, {card['norm']} {card['eps']}: {average}"
    _draw(folder, found, summary[summary.attack == last], title)
    store.write_json(folder / "card.json", card | {"results": results})


def broken_by(found: Outcomes, battery: Battery) -> pd.DataFrame:
    """A row per AutoAttack and class: n images, how many were wrong when clean, were broken by each part, survived.

    Who survived is who counts as robust: where outputs are random, an image that is wrong in one clean pass is wrong.
    """
    frames = []
    for name, parts in found.broken_by.items():
        parts = np.where(found.clean == found.y, parts, "clean")
        table = pd.crosstab(found.y, np.where(parts == "", "survived", parts))
        names = [*battery[name].names, "survived"]  # type: ignore[union-attr]
        table = table.reindex(index=range(len(found.classes)), columns=names, fill_value=0)
        front = {"attack": name, "class": list(found.classes), "n": table.sum(axis=1)}
        frames.append(pd.concat([pd.DataFrame(front), table], axis=1))
    return pd.concat(frames, ignore_index=True)


def _draw(folder: Path, found: Outcomes, last: pd.DataFrame, title: str) -> None:
    """The figures: class by class under the last attack; which class is taken for which, under each."""
    from crat import plots

    plots.use_style()
    worst = last.dropna(subset="robust_acc").nsmallest(DRAWN, "robust_acc")
    if len(worst) < len(last):
        title += f"; the {len(worst)} worst classes"
    classes = [k for k, name in enumerate(found.classes) if name in set(worst["class"])]
    matrices, tables = {}, []
    for name, predictions in found.predictions.items():
        counts = metrics.confusion(found.y, predictions, len(found.classes))
        matrices[name] = (counts / counts.sum(1, keepdims=True).clip(1))[np.ix_(classes, classes)]
        table = pd.DataFrame(counts, found.classes, found.classes).rename_axis("true").reset_index()
        tables.append(table.melt("true", var_name="predicted", value_name="n").assign(attack=name))
    place = str(folder.absolute())  # an absolute place is where `save` writes, whatever the folder of figures is
    for figure, table, name in (
        (plots.class_bars(worst, title), last, "class_bars"),
        (plots.confusion_heat(matrices, [found.classes[k] for k in classes]), pd.concat(tables), "confusion"),
    ):
        plots.save(figure, table, place, name)
        plots.plt.close(figure)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with store.written_whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def _of_present_classes(found: Outcomes, attacks: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """`metrics.summary`, without the classes of which no image was asked for."""
    table = metrics.summary(found.y, found.clean, attacks, found.classes)
    return table[table.n > 0].reset_index(drop=True)


def class_table(found: Outcomes) -> str:
    """For the terminal: a row a class with images, a column an attack, % right with Wilson's 95 %.

    Then the mean over these classes, the share of all images that are right, and the worst class.
    """
    attacks = {name: predictions for name, predictions in found.predictions.items() if name != "clean"}
    table = _of_present_classes(found, attacks)
    totals = metrics.totals(found.y, found.clean, attacks).set_index("attack")
    right = metrics.outcomes(found.y, found.clean, attacks)
    columns = {
        name: [f"{100 * row.robust_acc:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" for row in rows.itertuples()]
        + [f"{100 * value:.1f}" for value in (totals.average[name], right[name].mean(), totals.worst[name])]
        for name, rows in table.groupby("attack", sort=False)
    }
    present = table[table.attack == "clean"]
    names = [*present["class"], "mean over classes", "all images", "worst class"]
    rows = zip(names, [*map(str, present.n), "", str(len(found.y)), ""], *columns.values(), strict=True)
    head = "% right (under attack: right before and after it) with Wilson's 95 % interval\n\n"
    return head + aligned(("class", "n", *columns), rows)


def main(
    subject: str, architecture: str | None, plan: Plan, device: str | None, out: str | None, key: str | None = None
) -> None:
    """What `crat audit` does: the checks, the table, and where the files are."""
    settings: dict[str, Any] = {"progress": sys.stderr.isatty(), "tell": partial(print, flush=True)}
    place = Path(out).expanduser() if out else None
    folder, found = audit(subject, plan, architecture, key=key, device=device, out=place, **settings)
    print(f"\n{class_table(found)}\n\n{shown(folder)}: {', '.join(sorted(p.name for p in folder.glob('*.*')))}")
