"""Figures from tables, each saved with its CSV."""

from crat.extras import needs

try:
    import matplotlib.pyplot as plt
    import seaborn as sns
except ModuleNotFoundError:
    needs("crat.plots", "matplotlib", "seaborn")
    raise

from crat.plots.base import (
    METHOD_NAMES,
    STYLE,
    class_bars,
    class_curves,
    class_scatter,
    confusion_heat,
    figures_folder,
    image_rows,
    method_bars,
    rank_heat,
    save,
    save_in,
    stacked_shares,
    temperature_curves,
    use_style,
)
from crat.plots.marks import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SERIES,
    SKY,
    class_colours,
    mark,
)

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "METHOD_NAMES",
    "ORANGE",
    "PINK",
    "RED",
    "SERIES",
    "SKY",
    "STYLE",
    "brackets",
    "class_bars",
    "class_colours",
    "class_curves",
    "class_scatter",
    "confusion_heat",
    "figures_folder",
    "image_rows",
    "mark",
    "method_bars",
    "methods",
    "plt",
    "rank_heat",
    "save",
    "save_in",
    "sns",
    "stacked_shares",
    "temperature_curves",
    "use_style",
]
