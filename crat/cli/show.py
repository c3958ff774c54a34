"""`crat show`: one run, its settings, its classes and its history."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from crat.cli.parsing import new_file
from crat.text import aligned, percent, shown

if TYPE_CHECKING:
    import pandas as pd

DRAWN = (".png", ".pdf", ".svg")  # endings of a figure's file
BARS = " ▁▂▃▄▅▆▇█"  # of a curve in a terminal


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    parser.add_argument("run", help="a run's folder, its name or a part of the name")
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=new_figure,
        help="draw the history of each class: .png, .pdf or .svg",
    )


def new_figure(text: str) -> Path:
    """The path of a figure that is to be drawn, as `new_file`; its ending says how."""
    path = new_file(text)
    if path.suffix.lower() not in DRAWN:
        raise ArgumentTypeError(f"a figure ends in {', '.join(DRAWN)}, unlike {text!r}")
    return path


def run(a: Namespace) -> None:
    """Prints the settings, the best epoch by class and the validation curves of a run."""
    from crat.cli.flags import words_for
    from crat.training.named import find_run, label

    asked = find_run(a.run)
    card, history = asked.card(), asked.history()
    valid = history[history.split == "valid"]
    print(f"{asked.name}: {label(asked.config)}")
    print(f"crat train {words_for(asked.config)}")
    took = f"{card['train_seconds'] / 60:.1f} minutes on {card.get('device', 'an unknown device')}"
    print(f"{card['epochs_done']} of {card['config']['train']['epochs']} epochs, {took}")
    best = card["best"]["epoch"]
    rows = valid[valid.epoch == best]
    cells = zip(
        rows["class"], rows.n, map(percent, rows.clean_acc), map(percent, rows.robust_acc),
        _curves(valid, list(rows["class"])), strict=True,
    )  # fmt: skip
    print(f"\nvalidation, epoch {best} (the best) and, under attack, from the first to the last:")
    print(aligned(("class", "images", "clean %", "robust %", "robust by epoch"), cells))
    if a.figure:
        _draw(valid, a.figure, asked.name)
        print(f"\n{shown(a.figure)}")
    print(f"\n{shown(asked.folder)}")


def _curves(valid: pd.DataFrame, classes: list[str]) -> list[str]:
    """A bar for each epoch and class, from 0 to 100 %."""
    by_epoch = valid.pivot(index="epoch", columns="class", values="robust_acc")
    step = 1 / (len(BARS) - 1)
    return ["".join(BARS[round(v / step)] for v in by_epoch[k].fillna(0)) for k in classes]


def _draw(valid: pd.DataFrame, file: Path, title: str) -> None:
    """The robust accuracy of each class over the epochs, and their average in black."""
    from crat import plots, store

    by_epoch = 100 * valid.pivot(index="epoch", columns="class", values="robust_acc")
    figure, axis = plots.plt.subplots(figsize=(6.4, 3.6))
    for name, colour in plots.class_colours(valid["class"].unique()).items():
        axis.plot(by_epoch.index, by_epoch[name], lw=1, color=colour, label=name)
    axis.plot(by_epoch.index, by_epoch.mean(axis=1), "k", lw=2, label="average")
    axis.set(xlabel="epoch", ylabel="robust accuracy on validation (%)", title=title)
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with store.written_whole(file) as temporary:
        figure.savefig(temporary, bbox_inches="tight")
