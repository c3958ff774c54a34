"""The report of an audit: its card, class-wise tables with intervals, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crat import store
from crat.analysis import metrics
from crat.extras import missing
from crat.outcomes.batteries import SAMPLED, Battery
from crat.outcomes.cache import Outcomes
from crat.outcomes.sampled import Sampled

DRAWN = 20  # classes in a figure; of more, the worst


def report(
    folder: Path,
    card: dict[str, Any],
    battery: Battery,
    found: Outcomes,
    sampled: Sampled | None = None,
) -> None:
    """Writes card.json, class_wise.csv, broken_by.csv and the figures class_bars and confusion.

    card: of the audit; "results", and with a sample "sampled", are added to it. A figure's table is
    written beside it.
    battery: all attacks, the one on a sample included.
    sampled: AutoAttack on a sample, whose class table goes to estimates.csv.
    """
    attacks = {name: found.predictions[name] for name in battery if name in found.predictions}
    summary = metrics.summary(found.y, found.clean, attacks, found.classes)
    summary = summary[summary.n > 0].reset_index(drop=True)
    results = _results(found, attacks, summary)
    _write_csv(folder / "class_wise.csv", summary)
    for name in ("broken_by.csv", "estimates.csv"):
        (folder / name).unlink(missing_ok=True)  # of an earlier plan
    judged = [found, sampled.attacked] if sampled and sampled.attacked else [found]
    if any(outcomes.broken_by for outcomes in judged):
        tables = [broken_by(outcomes, battery) for outcomes in judged if outcomes.broken_by]
        _write_csv(folder / "broken_by.csv", pd.concat(tables, ignore_index=True))
    last = list(attacks)[-1]
    drawn = summary[summary.attack == last]
    if sampled:
        last = SAMPLED
        clean = summary.clean_acc[summary.attack == "clean"].to_numpy()
        drawn = sampled.table.assign(attack=last, clean_acc=clean)
        results[last] = _estimates(sampled)
        card = card | {"sampled": _sample(sampled)}
        _write_csv(folder / "estimates.csv", sampled.table)
    name = Path(card["subject"]).name
    average = f"average of classes {100 * results[last]['average']:.1f} %"
    title = f"{name} under {last}, {card['norm']} {card['eps']}: {average}"
    if lacking := missing("matplotlib", "seaborn"):
        print(f"no figures without {', '.join(lacking)}: pip install 'crat[plots]'")
    else:
        _draw(folder, found, drawn, title)
    store.write_json(folder / "card.json", card | {"results": results})


def _estimates(sampled: Sampled) -> dict[str, Any]:
    """The results of AutoAttack on a sample, with 95 % intervals."""
    table = sampled.table
    worst = table["class"][table.robust_acc.idxmin()]
    return sampled.totals | {"worst_class": worst}


def _sample(sampled: Sampled) -> dict[str, Any]:
    """The design of a sample, the numbers of its images and those that AutoAttack broke."""
    counts = {name: int(count.sum()) for name, count in sampled.counts._asdict().items()}
    return {
        "design": asdict(sampled.design),
        "phase_one": list(sampled.phase_one),
        "images": counts["n"],
        "attacked": counts["hard"] + counts["drawn"],
        "hard": counts["hard"],
        "hard_broken": counts["hard"] - counts["robust"],
        "drawn": counts["drawn"],
        "drawn_broken": counts["broken"],
    }


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
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
