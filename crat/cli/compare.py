"""`crat compare`: runs beside each other, class by class, with intervals."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from crat.cli.parsing import count
from crat.names import ConfigError
from crat.text import aligned, percent, shown

if TYPE_CHECKING:
    import pandas as pd

    from crat.config import RunConfig
    from crat.papers.evidence import Evidence
    from crat.training.run import Run

FUNCTIONALS = ("average", "worst")
HEADER = ("method", "seeds", "clean", "average", "difference", "worst class", "difference")


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, its name or a part of the name")
    add("--base", metavar="RUN", help="what the others are compared with (default: the first)")
    add("--alone", action="store_true", help="the named runs only, without those of other seeds")
    add("--images", type=count, metavar="N", help="the first N test images (default: all)")
    add("--csv", metavar="FILE", help="the table, as fractions")
    add("--latex", metavar="FILE", help="the table for a paper (booktabs), in percent")
    add("--out", metavar="FOLDER", help="of the figures: the frontier and a class heat map")
    add("--device", help="such as cpu or cuda:1")


def run(a: Namespace) -> None:
    """Prints the table, and writes what was asked for."""
    from crat.training.named import find_run, label

    named = [find_run(text) for text in [*([a.base] if a.base else []), *a.runs]]
    asked: dict[str, RunConfig] = {}
    for chosen in named:
        for seeded in [chosen] if a.alone else _siblings(chosen):
            asked[f"{label(seeded.config)}-s{seeded.config.train.seed}"] = seeded.config
    _check_comparable(asked)
    test = _judged(asked, a.images, a.device)
    base = label(named[0].config)
    table = compared(test, base)
    attack = next(iter(test.battery))
    seeds = ", ".join(f"{m} {len(test.keys(m))}" for m in test.methods)
    print(f"{test.dataset}, {test.labels(base).size} test images, {attack}; seeds: {seeds}")
    print(f"the intervals (95 %) are of the difference to {base}, in points\n")
    print(aligned(HEADER, _cells(table)))
    if a.csv:
        table.to_csv(a.csv, index=False, lineterminator="\n")
    if a.latex:
        from crat.latex import booktabs

        caption = f"{test.dataset} under {attack}: percent, mean over seeds ± sd"
        text = booktabs(HEADER, [_cells(table)], caption)
        Path(a.latex).write_text(text, encoding="utf-8", newline="\n")
    if a.out:
        _draw(test, base, Path(a.out))
    for written in filter(None, (a.csv, a.latex, a.out)):
        print(f"\n{shown(Path(written))}")


def _siblings(chosen: Run) -> list[Run]:
    """The run and its finished siblings, which differ by their seed."""
    from crat.store import Store
    from crat.training.named import find_run, run_folders

    own = chosen.config.train.seed
    found = {own: chosen}
    for folder in run_folders(Store.usual()):
        if folder.name.startswith(f"{chosen.config.data.name}-"):
            other = find_run(folder.name)
            if other.finished and other.config.but(seed=own) == chosen.config:
                found.setdefault(other.config.train.seed, other)
    return [found[seed] for seed in sorted(found)]


def _check_comparable(asked: dict[str, RunConfig]) -> None:
    """Raises ConfigError where the runs are on several data sets, or of one method."""
    sets = sorted({config.data.name for config in asked.values()})
    if len(sets) > 1:
        raise ConfigError(f"the runs are on {' and '.join(sets)}: compare those of one data set")
    methods = {key.rpartition("-s")[0] for key in asked}
    if len(methods) < 2:
        raise ConfigError(f"all runs are {methods.pop()}: a comparison needs two methods")


def _judged(asked: dict[str, RunConfig], images: int | None, device: str | None) -> Evidence:
    from crat.config import Selection
    from crat.papers.evidence import Evidence
    from crat.store import Store

    evidence = Evidence("compare", "laptop", asked, Selection(), Store.usual(), {})
    return evidence.judge(evidence.battery, first=images, device=device)


def compared(test: Evidence, base: str) -> pd.DataFrame:
    """A row for each method: its means and sds, and its difference to the base with an interval.

    Columns: method, seeds, clean, clean_sd, average, average_sd, worst, worst_sd, and for both
    functionals <f>_difference, <f>_low, <f>_high, <f>_p (nan for the base). Fractions.
    """
    import pandas as pd

    rows = []
    for method in test.methods:
        row: dict[str, object] = {"method": method, "seeds": len(test.keys(method))}
        cells = {"clean": test.each(method, "average", "clean")}
        cells |= {f: test.each(method, f) for f in FUNCTIONALS}
        for name, values in cells.items():
            row[name] = values.mean()
            row[f"{name}_sd"] = values.std(ddof=1) if len(values) > 1 else float("nan")
        for f in FUNCTIONALS if method != base else ():
            found = test.compare(method, base, f)
            row |= {f"{f}_difference": found.value, f"{f}_low": found.low}
            row |= {f"{f}_high": found.high, f"{f}_p": found.p}
        rows.append(row)
    return pd.DataFrame(rows)


def _cells(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """The rows in percent, as HEADER has them; the best average and worst class have a star."""
    best = {f: table[f].idxmax() for f in FUNCTIONALS}
    rows = []
    for i, row in table.iterrows():
        cells = [str(row["method"]), str(row["seeds"]), _mean_sd(row, "clean")]
        for f in FUNCTIONALS:
            star = "*" if best[f] == i else ""
            cells += [_mean_sd(row, f) + star, _difference(row, f)]
        rows.append(tuple(cells))
    return rows


def _mean_sd(row: pd.Series, name: str) -> str:
    sd = row[f"{name}_sd"]
    return percent(row[name]) + ("" if sd != sd else f" ± {percent(sd)}")  # nan: one seed


def _difference(row: pd.Series, f: str) -> str:
    value = row[f"{f}_difference"]
    if value != value:  # nan: the base itself
        return "-"
    ends = f"{percent(row[f'{f}_low'])}, {percent(row[f'{f}_high'])}"
    return f"{100 * value:+.1f} [{ends}]"


def _draw(test: Evidence, base: str, folder: Path) -> None:
    """Writes the frontier of average and worst class, and the classes beside the base's."""
    import pandas as pd

    from crat import plots
    from crat.plots import methods as plots_methods

    folder.mkdir(parents=True, exist_ok=True)
    points = pd.concat(
        pd.DataFrame({"method": m} | {f: test.each(m, f) for f in FUNCTIONALS})
        for m in test.methods
    )
    attack = next(iter(test.battery))
    title = f"{test.dataset}, {attack}: small dots are seeds"
    plots.save_in(folder, plots_methods.frontier(points, title=title), points, "frontier")
    classes = test.class_table(test.methods, attack)
    title = f"robust accuracy of each class under {attack} (%)"
    figure = plots_methods.class_heat(classes, base=base, title=title)
    plots.save_in(folder, figure, classes, "classes")
