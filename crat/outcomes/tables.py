"""The class-wise tables of outcomes: for a terminal, for a paper, and as data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from crat.analysis import metrics
from crat.outcomes.batteries import SAMPLED
from crat.outcomes.cache import Outcomes
from crat.outcomes.sampled import Sampled
from crat.text import Bold, aligned, booktabs


def class_table(found: Outcomes) -> str:
    """A table for the terminal: % right by class and attack, with Wilson's 95 % intervals.

    The last rows: mean over the classes with images, share of all images, worst class.
    """
    header, classes, totals = _cells(found)
    head = "% right (under attack: right before and after it) with Wilson's 95 % interval\n\n"
    return head + aligned(header, classes + totals)


def class_latex(found: Outcomes, caption: str, sampled: Sampled | None = None) -> str:
    """The same table for a paper (booktabs); the worst class is bold in each column.

    Several are where they are equally bad, none where all classes are equal.

    caption: text that stands before the words on the interval.
    sampled: AutoAttack on a sample, whose estimates are the last column.
    """
    header, classes, totals = _cells(found)
    summary = class_summary(found, sampled)
    interval = "right in percent, with Wilson's 95 % interval over images"
    if sampled:
        header = (*header, SAMPLED)
        for row, of_class in zip(classes, sampled.table.itertuples(), strict=True):
            row.append(_in_percent(of_class.robust_acc, [of_class.low, of_class.high]))
        for row, name in zip(totals, ("average", "share", "worst"), strict=True):
            row.append(_in_percent(sampled.totals[name], sampled.totals[f"{name}_interval"]))
        interval += f"; {SAMPLED}: estimates from {len(sampled.sample.places)} attacked images"
    for j, (_, rows) in enumerate(summary.groupby("attack", sort=False)):
        accuracy = rows.robust_acc.to_numpy()
        if accuracy.min() < accuracy.max():
            for k in np.flatnonzero(accuracy == accuracy.min()):
                classes[k][2 + j] = Bold(classes[k][2 + j])
    return booktabs(header, [classes, totals], f"{caption}: {interval}")


def class_summary(found: Outcomes, sampled: Sampled | None = None) -> pd.DataFrame:
    """A row for each class with images and attack, clean first: `metrics.summary`, fractions.

    sampled: AutoAttack on a sample, whose estimates are the last rows, with their intervals.
    """
    table = metrics.summary(found.y, found.clean, _attacks(found), found.classes)
    table = table[table.n > 0].reset_index(drop=True)
    if sampled is None:
        return table
    clean = table.clean_acc[table.attack == "clean"].to_numpy()
    estimates = sampled.table.assign(attack=SAMPLED, clean_acc=clean)
    return pd.concat([table, estimates.reindex(columns=table.columns)], ignore_index=True)


def _attacks(found: Outcomes) -> dict[str, np.ndarray]:
    return {name: answers for name, answers in found.predictions.items() if name != "clean"}


def _cells(found: Outcomes) -> tuple[tuple[str, ...], list[list[str]], list[list[str]]]:
    """The header, the rows of the classes and the rows of the totals, in percent."""
    attacks = _attacks(found)
    table = class_summary(found)
    present = table[table.attack == "clean"]
    classes = [[name, str(n)] for name, n in zip(present["class"], present.n, strict=True)]
    sums = metrics.totals(found.y, found.clean, attacks).set_index("attack")
    right = metrics.outcomes(found.y, found.clean, attacks)
    totals = [["mean over classes", ""], ["all images", str(len(found.y))], ["worst class", ""]]
    header = ["class", "n"]
    for name, rows in table.groupby("attack", sort=False):
        header.append(str(name))
        for cells, row in zip(classes, rows.itertuples(), strict=True):
            cells.append(_in_percent(row.robust_acc, [row.low, row.high]))
        values = (sums.average[name], right[name].mean(), sums.worst[name])
        for cells, value in zip(totals, values, strict=True):
            cells.append(f"{100 * value:.1f}")
    return tuple(header), classes, totals


def estimate_table(sampled: Sampled) -> str:
    """A table for the terminal: estimates in % of AutoAttack on a sample, with 95 % intervals.

    The first line says which images were attacked, the last warns of breaks in the random part.
    """
    rows = []
    for row in sampled.table.itertuples():
        interval = _in_percent(row.robust_acc, [row.low, row.high])
        name = row[1]  # "class" is no name of a field
        rows.append((name, row.n, row.attacked, interval, f"{100 * row.se:.1f}"))
    totals = sampled.totals
    names = {"average": "mean over classes", "share": "all images", "worst": "worst class"}
    for name, words in (names | {"tail": "tail"}).items():
        rows.append((words, "", "", _in_percent(totals[name], totals[f"{name}_interval"]), ""))
    head = ("class", "n", "attacked", f"{SAMPLED}: % right", "standard error")
    warning = f"\n\n{sampled.warning}" if sampled.warning else ""
    return f"{sampled.description}\n\n{aligned(head, rows)}{warning}"


def _in_percent(value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
