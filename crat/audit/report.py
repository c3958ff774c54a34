"""What an audit leaves: its card, the class-wise tables with their intervals, the figures."""

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
    """Writes card.json, class_wise.csv, broken_by.csv, and the figures class_bars and confusion
    beside their tables.
    """
    attacks = {name: found.predictions[name] for name in battery}
    summary = _of_present_classes(found, attacks)
    results = {}
    right = metrics.outcomes(found.y, found.clean, attacks)
    for row in metrics.totals(found.y, found.clean, attacks).itertuples():
        classes = summary[summary.attack == row.attack].set_index("class")
        # Wilson's of all images: right where classes are equally large, a little wide where they
        # differ in accuracy
        around = metrics.wilson(row.average * len(found.y), len(found.y))
        results[row.attack] = {
            "average": row.average,
            "average_interval": [float(end) for end in around],
            "share": float(right[row.attack].mean()),
            "worst": row.worst,
            "worst_class": classes.robust_acc.idxmin(),
            "worst_interval": [row.worst_low, row.worst_high],
        }
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
    """A row per AutoAttack and class: n images, how many were wrong when clean, were broken by each
    part, survived.

    Who survived is who counts as robust: where outputs are random, an image that is wrong in one
    clean pass is wrong.
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
    """The figures: class by class under the last attack; which class is taken for which, under
    each.
    """
    import matplotlib.pyplot as plt

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
    """`metrics.summary`, without the classes of which no image was asked for."""
    table = metrics.summary(found.y, found.clean, attacks, found.classes)
    return table[table.n > 0].reset_index(drop=True)


def class_table(found: Outcomes) -> str:
    """For the terminal: a row a class with images, a column an attack, % right with Wilson's 95 %.

    Then the mean over these classes, the share of all images that are right, and the worst class.
    """
    attacks = {
        name: predictions for name, predictions in found.predictions.items() if name != "clean"
    }
    table = _of_present_classes(found, attacks)
    totals = metrics.totals(found.y, found.clean, attacks).set_index("attack")
    right = metrics.outcomes(found.y, found.clean, attacks)
    columns = {
        name: [
            f"{100 * row.robust_acc:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
            for row in rows.itertuples()
        ]
        + [
            f"{100 * value:.1f}"
            for value in (totals.average[name], right[name].mean(), totals.worst[name])
        ]
        for name, rows in table.groupby("attack", sort=False)
    }
    present = table[table.attack == "clean"]
    names = [*present["class"], "mean over classes", "all images", "worst class"]
    rows = zip(
        names, [*map(str, present.n), "", str(len(found.y)), ""], *columns.values(), strict=True
    )
    head = "% right (under attack: right before and after it) with Wilson's 95 % interval\n\n"
    return head + aligned(("class", "n", *columns), rows)
