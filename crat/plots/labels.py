"""Figures of notebook 05: label mass, sorted class errors, corruptions, calibration, delta.

Tables in, figures out: fractions are drawn in percent; no file is read.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import panel_row, widen
from crat.plots.marks import GREY, mark


def label_heat(table: pd.DataFrame, title: str = "") -> Figure:
    """Share of a label's mass on each output, in percent: a row for each kind of label.

    table: columns label, output, share.
    """
    wide = 100 * table.pivot(index="label", columns="output", values="share")
    wide = wide.loc[table.label.unique(), table.output.unique()]
    figure, ax = plt.subplots(figsize=(0.5 * wide.shape[1] + 2.6, 0.34 * len(wide) + 0.9))
    texts = wide.map(lambda v: f"{v:.0f}" if v else "")
    scale = {"cmap": "Blues", "vmin": 0, "vmax": 100}
    sns.heatmap(wide, ax=ax, annot=texts, fmt="", linewidths=0.5, cbar=False, **scale)
    ax.set(xlabel="", ylabel="", title=title)
    ax.tick_params(length=0)
    ax.set_xticklabels(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    return figure


def sorted_errors(table: pd.DataFrame) -> Figure:
    """Each method's class errors, sorted from its worst class on, with 95 % over images.

    table: columns panel, method, rank, error, low, high.
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 3.5, 0.4, 3)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.panel == panel]
        for method in part.method.unique():
            curve = part[part.method == method].sort_values("rank")
            rank, look = curve["rank"], _line(method)
            ax.plot(rank, 100 * curve.error, label=method, clip_on=False, **look)
            band = {"color": look["color"], "alpha": 0.15, "lw": 0}
            ax.fill_between(rank, 100 * curve.low, 100 * curve.high, **band)
        ax.set(title=panel, xlabel="class, each method's worst first")
    axes[0].set_ylabel("error (%)")
    axes[0].set_ylim(0, 100)
    axes[0].legend()
    return figure


def corruption_heat(table: pd.DataFrame, title: str = "", label: str = "points") -> Figure:
    """Differences by corruption (rows) and severity (columns), in percentage points.

    table: columns corruption, severity, difference (fractions). Above 0 is orange; rows stand by
        their mean, the largest first.
    """
    wide = 100 * table.pivot(index="corruption", columns="severity", values="difference")
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    limit = max(1.0, float(np.nanmax(np.abs(wide.to_numpy()))))
    figure, ax = plt.subplots(figsize=(0.62 * wide.shape[1] + 3, 0.27 * len(wide) + 1))
    scale = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit, "cbar_kws": {"label": label}}
    numbers = {"annot": True, "fmt": "+.1f", "annot_kws": {"size": "small"}}
    sns.heatmap(wide, ax=ax, linewidths=0.5, **scale, **numbers)
    ax.set(ylabel="", title=title)
    names = [text.get_text().replace("_", " ") for text in ax.get_yticklabels()]
    ax.set_yticklabels(names, rotation=0)
    return figure


def severity_curves(table: pd.DataFrame) -> Figure:
    """Mean error of each method over severity (0 is clean).

    table: columns method, severity, error, a row for each corruption and run.
    """
    figure, ax = plt.subplots(figsize=(4.6, 3))
    for method in table.method.unique():
        part, look = table[table.method == method], _line(method)
        lines = 100 * part.groupby("severity")["error"].agg(["mean", "min", "max"])
        ax.plot(lines.index, lines["mean"], label=method, **look)
        band = {"color": look["color"], "alpha": 0.15, "lw": 0}
        ax.fill_between(lines.index, lines["min"], lines["max"], **band)
    ax.set(xlabel="severity (0: clean)", ylabel="error (%)")
    ax.legend()
    return figure


def reliability_curves(table: pd.DataFrame) -> Figure:
    """Reliability diagram: accuracy over confidence, a point for each bin.

    table: columns panel, method, confidence, accuracy. On the dotted line confidence equals
        accuracy.
    """
    panels = list(table.panel.unique())
    figure, axes = panel_row(len(panels), 3.2, 0.4, 3)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.panel == panel]
        ax.plot([0, 100], [0, 100], color="black", lw=0.8, ls=":")
        for method in part.method.unique():
            bins = part[part.method == method]
            ax.plot(100 * bins.confidence, 100 * bins.accuracy, label=method, **_line(method))
        ax.set(title=panel, xlabel="confidence (%)", xlim=(0, 100), ylim=(0, 100))
    axes[0].set_ylabel("accuracy (%)")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def delta_curves(table: pd.DataFrame) -> Figure:
    """Quantities of Adv+ over delta, a panel each; dots are runs, the line joins their means.

    The band spans the seeds of the delta that has most of them: what a seed alone can change. Each
    axis spans ten points or more, so that this noise does not look like a trend.
    table: columns delta, what, value, a row for each run.
    """
    panels = list(table.what.unique())
    colour = mark("Adv+").colour
    figure, axes = panel_row(len(panels), 2.6, 0.5, 2.9, sharey=False)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.what == panel].sort_values("delta")
        runs = (100 * part.value).groupby(part.delta).agg(["mean", "min", "max", "count"])
        ax.plot(runs.index, runs["mean"], color=colour, lw=1, alpha=0.5)
        ax.scatter(part.delta, 100 * part.value, s=18, color=colour, label="a run")
        repeated = runs.loc[runs["count"].idxmax()]
        band = {"color": GREY, "alpha": 0.25, "lw": 0, "label": "between seeds of one δ"}
        ax.axhspan(repeated["min"], repeated["max"], **band)
        ax.set(title=panel, xlabel="δ")
        widen(ax, x=0, y=10)
    axes[0].set_ylabel("%")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def _line(method: str) -> dict[str, Any]:
    """The colour and shape of a method's curve."""
    look = mark(method)
    return {"color": look.colour, "marker": look.shape, "ms": 4}
