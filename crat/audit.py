"""`crat audit`: any model, whoever trained it, judged class by class: a card, tables with intervals, figures."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import crat
from crat import data, metrics, store
from crat.attacks import FGSM, Attack, AutoAttack, Square, checks, cw
from crat.attacks.judge import as_images
from crat.attacks.threat import NORMS
from crat.config import DATASETS, DTYPES, PROTOCOLS, ConfigError, as_written, number
from crat.device import describe, pick_device, pick_dtype
from crat.evaluate import protocol_pgd
from crat.foreign import CHECKED, decision, examine, find_model, noted
from crat.names import one_of
from crat.reproduce import aligned, shown
from crat.verdicts import Battery, Outcomes, Subject, Verdicts

DRAWN = 20  # classes in a figure; of more, the worst


@dataclass(frozen=True)
class Plan:
    """On what a model is judged, and how; raises ConfigError on what cannot be.

    eps: radius as it is written, "8/255" (None: that of the data set's protocol, L-inf). images: the first so many test
    images (0: all). attacks: names out of `known` (none: FGSM, PGD, CW and AA; in L1 AA alone). logit_slice: so many
    logits answer, the first. scale: of cosine logits. dtype: of the search; the verdict is float32.
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
    device: str | None = None,
    out: Path | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = print,
) -> tuple[Path, Outcomes]:
    """Checks the model of `subject` (see `find_model`), judges it, writes the report; its folder and the outcomes.

    What is kept is read: outcomes belong to the weights, to what the model answers, and to all of the plan. out: the
    folder (None: audits/ in the store). tell: gets a line on what is judged, and each warning, before the battery runs.
    """
    where = pick_device(device)
    images = data.imagenet_validation(plan.images) if plan.data == "imagenet" else data.load(plan.data)
    x, y = (part[: plan.images or None].to(where) for part in (images.x_test, images.y_test))
    found, doubts = find_model(subject, architecture, images, where)
    model = decision(found, as_images(x[:CHECKED]), images.n_classes, plan.logit_slice, plan.scale)
    logits, more = examine(model, x, y, images.classes)
    decided_by = _decided_by(plan, found, logits, pick_dtype(plan.dtype, where))
    key = store.digest([decided_by, plan.eps, plan.norm])
    label = re.sub(r"[^\w.-]+", "-", Path(subject).name)
    folder = out or store.home() / "audits" / f"{label}-{key}"
    seconds = _seconds_before(folder, key)
    parameters = sum(parameter.numel() for parameter in found.parameters())
    card = asdict(plan) | {
        "audit": key, "subject": subject, "model": architecture or type(found).__name__, "parameters": parameters,
        "weights": decided_by["weights"], "images": len(x), "dtype": decided_by["dtype"], "device": describe(where),
        "attacks": {name: repr(attack) for name, attack in plan.battery.items()}, "warnings": doubts + more,
        "versions": {"crat": crat.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
    tell(f"{subject}: {card['model']}, {parameters:,} parameters, weights {card['weights']}")
    tell(f"{plan.data}: {len(x)} test images, {plan.norm} {plan.eps}, search in {card['dtype']}")
    for line in card["warnings"]:
        tell(f"warning: {line}")
    verdicts = Verdicts(label, [folder], decided_by, lambda: Subject(model, None, x, y), progress)
    outcomes = _timed(verdicts, plan.battery, images.classes, seconds)
    for line in (after := _masked(outcomes)):
        tell(f"warning: {line}")
    seconds = {name: seconds[name] for name in plan.battery if name in seconds}
    report(folder, card | {"warnings": card["warnings"] + after, "seconds": seconds}, plan.battery, outcomes)
    return folder, outcomes


def _seconds_before(folder: Path, key: str) -> dict[str, float]:
    """What the attacks took in an earlier audit of the same; raises ConfigError where the folder holds other things."""
    if not (folder / "card.json").exists():
        return {}
    card = store.read_json(folder / "card.json")
    if "audit" not in card:
        raise ConfigError(f"{folder} holds something else than an audit: give another --out")
    return card["seconds"] if card["audit"] == key else {}


def _decided_by(plan: Plan, model: nn.Module, logits: Tensor, dtype: str) -> dict[str, Any]:
    """All that decides an outcome besides the attack; of the model's code, what it answers on clean images.

    The answers are rounded means, so that a repeated run finds what it kept, and a forward pass that was mended (a
    scaling, a softmax) under the same weights does not.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {
        "split": "test", "first": len(logits), "data": plan.data, "seed": plan.seed, "dtype": dtype, "crafted_on": None,
        "weights": store.fingerprint(tensors), "logit_slice": plan.logit_slice, "scale": plan.scale,
        "answers": [f"{size:.3g}" for size in logits.abs().mean(0).tolist()],
    }  # fmt: skip


def _timed(verdicts: Verdicts, battery: Battery, classes: tuple[str, ...], seconds: dict[str, float]) -> Outcomes:
    """The outcomes; the seconds of what is not kept yet are added."""
    with noted():  # `examine` and `_masked` warn of all images; the battery does batch by batch
        for name, attack in battery.items():
            if not (verdicts.folders[-1] / verdicts.path(attack)).exists():
                began = time.perf_counter()
                verdicts.outcome(name, attack)
                seconds[name] = round(time.perf_counter() - began, 1)
        return verdicts.of(battery, "test", classes)


def _masked(found: Outcomes) -> list[str]:
    with noted() as lines:
        for name, broken_by in found.broken_by.items():
            if name == "AA":
                checks.check_square(int((broken_by == "square").sum()), len(broken_by))
    return lines


def report(folder: Path, card: dict[str, Any], battery: Battery, found: Outcomes) -> None:
    """Writes card.json, class_wise.csv, broken_by.csv, and the figures class_bars and confusion beside their tables."""
    attacks = {name: found.predictions[name] for name in battery}
    summary = metrics.summary(found.y, found.clean, attacks, found.classes)
    results = {}
    for row in metrics.totals(found.y, found.clean, attacks).itertuples():
        classes = summary[summary.attack == row.attack].set_index("class")
        # Wilson's of all images: right where classes are equally large, a little wide where they differ in accuracy
        around = metrics.wilson(row.average * len(found.y), len(found.y))
        results[row.attack] = {
            "average": row.average, "average_interval": [float(end) for end in around], "worst": row.worst,
            "worst_class": classes.robust_acc.idxmin(), "worst_interval": [row.worst_low, row.worst_high],
        }  # fmt: skip
    _write_csv(folder / "class_wise.csv", summary)
    (folder / "broken_by.csv").unlink(missing_ok=True)  # of an earlier plan
    if found.broken_by:
        _write_csv(folder / "broken_by.csv", broken_by(found, battery))
    last, name = list(battery)[-1], Path(card["subject"]).name
    average = f"average {100 * results[last]['average']:.1f} %"
    title = f"{name} under {last}, {card['norm']} {card['eps']}: {average}"
    _draw(folder, found, summary[summary.attack == last], title)
    store.write_json(folder / "card.json", card | {"results": results})


def broken_by(found: Outcomes, battery: Battery) -> pd.DataFrame:
    """A row per AutoAttack and class: n images, how many were wrong when clean, were broken by each part, survived."""
    frames = []
    for name, parts in found.broken_by.items():
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


def class_table(found: Outcomes) -> str:
    """For the terminal: a row a class, a column an attack, % right with Wilson's 95 %; then average and worst class."""
    attacks = {name: predictions for name, predictions in found.predictions.items() if name != "clean"}
    table = metrics.summary(found.y, found.clean, attacks, found.classes)
    totals = metrics.totals(found.y, found.clean, attacks).set_index("attack")
    columns = {
        name: [f"{100 * row.robust_acc:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]" for row in rows.itertuples()]
        + [f"{100 * totals.average[name]:.1f}", f"{100 * totals.worst[name]:.1f}"]
        for name, rows in table.groupby("attack", sort=False)
    }
    n = [str(size) for size in table.n[: len(found.classes)]]
    rows = zip([*found.classes, "average", "worst class"], [*n, "", ""], *columns.values(), strict=True)
    head = "% right (under attack: right before and after it) with Wilson's 95 % interval\n\n"
    return head + aligned(("class", "n", *columns), rows)


def main(subject: str, architecture: str | None, plan: Plan, device: str | None, out: str | None) -> None:
    """What `crat audit` does: the checks, the table, and where the files are."""
    settings: dict[str, Any] = {"progress": sys.stderr.isatty(), "tell": partial(print, flush=True)}
    place = Path(out).expanduser() if out else None
    folder, found = audit(subject, plan, architecture, device=device, out=place, **settings)
    print(f"\n{class_table(found)}\n\n{shown(folder)}: {', '.join(sorted(p.name for p in folder.glob('*.*')))}")
