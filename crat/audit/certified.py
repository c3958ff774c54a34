"""`crat audit --certify`: which images no attack can break, beside those that the attacks broke."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from crat import store
from crat.analysis.brackets import bracket
from crat.attacks import CROWN
from crat.attacks.door import as_images
from crat.data import Streamed
from crat.outcomes.cache import Outcomes
from crat.text import aligned


def refuse(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
    """Raises AttackError, before any attack, where no bound goes through a layer of the model."""
    CROWN(eps)(model, x[:0], y[:0])


def certify(
    model: nn.Module,
    x: Tensor | Streamed,
    y: Tensor,
    found: Outcomes,
    eps: float,
    progress: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table `bracket` of all attacks together, and what the card says of it.

    An image that is certified and whose outcome is wrong all the same is an error of one of both:
    raises MetricError.
    """
    began = time.perf_counter()
    crown = CROWN(eps)
    seen = partial(tqdm, desc="CROWN", leave=False) if progress else iter
    bounds = crown(model, as_images(x[: len(x)]), y, seen=seen)
    certified = (bounds.amin(1) > 0).cpu().numpy()
    robust = np.logical_and.reduce([found.robust(name) for name in found.predictions])
    table = bracket(found.y, certified, robust, found.classes)
    worst = table.certified_acc.idxmin()
    card = {
        "bound": repr(crown),
        "average": table.certified_acc.mean(),
        "share": float(certified.mean()),
        "worst": table.certified_acc[worst],
        "worst_class": table["class"][worst],
        "seconds": round(time.perf_counter() - began, 1),
    }
    return table, card


def write(folder: Path, table: pd.DataFrame | None) -> None:
    """Writes certified.csv; None: removes that of an earlier plan."""
    path = folder / "certified.csv"
    if table is None:
        path.unlink(missing_ok=True)
        return
    with store.written_whole(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def text(folder: Path) -> str:
    """The bracket of an audit's folder for a terminal, in percent; "" where there is none."""
    if not (folder / "certified.csv").exists():
        return ""
    table = pd.read_csv(folder / "certified.csv", dtype={"class": str}, keep_default_na=False)
    shares = [table[column].map("{:.1%}".format) for column in ("certified_acc", "robust_acc")]
    both = [f"{row.low:.1%} to {row.high:.1%}" for row in table.itertuples()]
    rows = zip(table["class"], table.n, *shares, both, strict=True)
    head = "of these images: certified <= robust <= not broken; of the class: 95 % interval\n\n"
    return f"\n\n{head}" + aligned(("class", "n", "certified", "not broken", "95 %"), rows)
