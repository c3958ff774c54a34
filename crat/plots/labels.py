"""Figures of notebook 05: label mass, sorted class errors, corruptions, calibration, delta.

Tables in, figures out: fractions are drawn in percent; no file is read.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from crat.plots.base import panel_row, widen
from crat.plots.marks import ORANGE, colours


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
        methods = list(part.method.unique())
        for method, colour in zip(methods, colours(methods), strict=True):
            curve = part[part.method == method].sort_values("rank")
            rank = curve["rank"]
            ax.plot(rank, 100 * curve.error, marker="o", ms=3, color=colour, label=method)
            band = {"color": colour, "alpha": 0.15, "lw": 0}
            ax.fill_between(rank, 100 * curve.low, 100 * curve.high, **band)
        ax.set(title=panel, xlabel="class, each method's worst first")
    axes[0].set_ylabel("error (%)")
    axes[0].set_ylim(0, 100)
    axes[-1].legend()
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
    methods = list(table.method.unique())
    for method, colour in zip(methods, colours(methods), strict=True):
        part = table[table.method == method]
        lines = 100 * part.groupby("severity")["error"].agg(["mean", "min", "max"])
        ax.plot(lines.index, lines["mean"], marker="o", ms=3, color=colour, label=method)
        ax.fill_between(lines.index, lines["min"], lines["max"], color=colour, alpha=0.15, lw=0)
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
        methods = list(part.method.unique())
        for method, colour in zip(methods, colours(methods), strict=True):
            bins = part[part.method == method]
            x, y = 100 * bins.confidence, 100 * bins.accuracy
            ax.plot(x, y, marker="o", ms=3, color=colour, label=method)
        ax.set(title=panel, xlabel="confidence (%)", xlim=(0, 100), ylim=(0, 100))
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend()
    return figure


def delta_curves(table: pd.DataFrame) -> Figure:
    """Quantities over delta, a panel each; dots are runs, the line joins their means.

    Each axis spans five points or more, so that the noise of seeds does not look like a trend.
    table: columns delta, what, value, a row for each run.
    """
    panels = list(table.what.unique())
    figure, axes = panel_row(len(panels), 2.7, 0.4, 2.7, sharey=False)
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table.what == panel].sort_values("delta")
        mean = 100 * part.groupby("delta")["value"].mean()
        ax.plot(mean.index, mean, color=ORANGE, lw=1.2)
        ax.scatter(part.delta, 100 * part.value, s=18, color=ORANGE)
        ax.set(title=panel, xlabel="δ")
        widen(ax, x=0)
    axes[0].set_ylabel("%")
    return figure
