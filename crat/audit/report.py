"""The report of an audit: its card, class-wise tables with intervals, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crat import store
from crat.analysis import metrics
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import Outcomes
from crat.text import aligned

DRAWN = 20  # classes in a figure; of more, the worst


def report(folder: Path, card: dict[str, Any], battery: Battery, found: Outcomes) -> None:
    """Writes card.json, class_wise.csv, broken_by.csv and the figures class_bars and confusion.

    card: of the audit; "results" are added to it. A figure's table is written beside it.
    """
    attacks = {name: found.predictions[name] for name in battery}
    summary = _of_present_classes(found, attacks)
    results = _results(found, attacks, summary)
    _write_csv(folder / "class_wise.csv", summary)
    (folder / "broken_by.csv").unlink(missing_ok=True)  # of an earlier plan
    if found.broken_by:
        _write_csv(folder / "broken_by.csv", broken_by(found, battery))
    last = list(battery)[-1]
    name = Path(card["subject"]).name
    average = f"average of classes {100 * results[last]['average']:.1f} %"
    title = f"{name} under {last}, {card['norm']} {card['eps']}: {average}"
    _draw(folder, found, summary[summary.attack == last], title)
    store.write_json(folder / "card.json", card | {"results": results})


def _results(
    found: Outcomes, attacks: Mapping[str, np.ndarray], summary: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """Name of an attack -> average, share of all images and worst class, with 95 % intervals."""
    results = {}
    right = metrics.outcomes(found.y, found.clean, attacks)
    for row in metrics.totals(found.y, found.clean, attacks).itertuples():
        classes = summary[summary.attack == row.attack].set_index("class")
        # Wilson's interval of all images: exact where classes are equally large, a little wide
        # where they differ in accuracy
        interval = metrics.wilson(row.average * len(found.y), len(found.y))
        results[row.attack] = {
            "average": row.average,
            "average_interval": [float(end) for end in interval],
            "share": float(right[row.attack].mean()),
            "worst": row.worst,
            "worst_class": classes.robust_acc.idxmin(),
            "worst_interval": [row.worst_low, row.worst_high],
        }
    return results


def broken_by(found: Outcomes, battery: Battery) -> pd.DataFrame:
    """A table of AutoAttack's parts by class: n images, wrong clean, broken by each part, survived.

    The survivors are the images that count as robust: where outputs are random, an image whose
    stored clean prediction is wrong counts as wrong.
    """
    frames = []
    for name, parts in found.broken_by.items():
        parts = np.where(found.clean == found.y, parts, "clean")
        table = pd.crosstab(found.y, np.where(parts == "", "survived", parts))
        names = [*battery[name].names, "survived"]
        table = table.reindex(index=range(len(found.classes)), columns=names, fill_value=0)
        front = {"attack": name, "class": list(found.classes), "n": table.sum(axis=1)}
        frames.append(pd.concat([pd.DataFrame(front), table], axis=1))
    return pd.concat(frames, ignore_index=True)


def _draw(folder: Path, found: Outcomes, last: pd.DataFrame, title: str) -> None:
    """Draws bars of the classes under the last attack, and confusion matrices under each attack."""
    import matplotlib.pyplot as plt

    from crat import plots

    plots.use_style()
    worst = last.dropna(subset="robust_acc").nsmallest(DRAWN, "robust_acc")
    if len(worst) < len(last):
        title += f"; the {len(worst)} worst classes"
    classes = [k for k, name in enumerate(found.classes) if name in set(worst["class"])]
    matrices = {}
    tables = []
    for name, predictions in found.predictions.items():
        counts = metrics.confusion(found.y, predictions, len(found.classes))
        matrices[name] = (counts / counts.sum(1, keepdims=True).clip(1))[np.ix_(classes, classes)]
        table = pd.DataFrame(counts, found.classes, found.classes).rename_axis("true").reset_index()
        tables.append(table.melt("true", var_name="predicted", value_name="n").assign(attack=name))
    # an absolute place is where `save` writes, whatever the folder of figures is
    place = str(folder.absolute())
    bars = plots.class_bars(worst, title)
    plots.save(bars, last, place, "class_bars")
    heat = plots.confusion_heat(matrices, [found.classes[k] for k in classes])
    plots.save(heat, pd.concat(tables), place, "confusion")
    plt.close(bars)
    plt.close(heat)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with store.written_whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def _of_present_classes(found: Outcomes, attacks: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The table of `metrics.summary` without the classes that have no image."""
    table = metrics.summary(found.y, found.clean, attacks, found.classes)
    return table[table.n > 0].reset_index(drop=True)


def class_table(found: Outcomes) -> str:
    """A table for the terminal: % right by class and attack, with Wilson's 95 % intervals.

    The last rows: mean over the classes with images, share of all images, worst class.
    """
    attacks = dict(found.predictions)
    attacks.pop("clean")
    table = _of_present_classes(found, attacks)
    totals = metrics.totals(found.y, found.clean, attacks).set_index("attack")
    right = metrics.outcomes(found.y, found.clean, attacks)
    columns: dict[Any, list[str]] = {}
    for name, rows in table.groupby("attack", sort=False):
        cells = []
        for row in rows.itertuples():
            interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
            cells.append(f"{100 * row.robust_acc:.1f} {interval}")
        for value in (totals.average[name], right[name].mean(), totals.worst[name]):
            cells.append(f"{100 * value:.1f}")
        columns[name] = cells
    present = table[table.attack == "clean"]
    names = [*present["class"], "mean over classes", "all images", "worst class"]
    counts = [*map(str, present.n), "", str(len(found.y)), ""]
    lines = zip(names, counts, *columns.values(), strict=True)
    head = "% right (under attack: right before and after it) with Wilson's 95 % interval\n\n"
    return head + aligned(("class", "n", *columns), lines)
