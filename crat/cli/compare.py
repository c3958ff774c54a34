"""`crat compare`: runs beside each other, class by class, with intervals."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from crat.cli.parsing import count, new_folder
from crat.cli.tables import add_tables, show_methods, tell_of
from crat.names import ConfigError

if TYPE_CHECKING:
    from crat.config import RunConfig
    from crat.papers.evidence import Evidence
    from crat.training.run import Run


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, its name or a part of the name")
    add("--base", metavar="RUN", help="what the others are compared with (default: the first)")
    add("--alone", action="store_true", help="the named runs only, without those of other seeds")
    add("--images", type=count, metavar="N", help="the first N test images (default: all)")
    add(
        "--out",
        metavar="FOLDER",
        type=new_folder,
        help="of the figures: the frontier and a class heat map",
    )
    add("--device", help="such as cpu or cuda:1")
    add_tables(parser, "the table")


def run(a: Namespace) -> None:
    """Prints the table, and writes what was asked for."""
    from crat.training.named import find_run, label

    named = [find_run(text) for text in [*([a.base] if a.base else []), *a.runs]]
    asked: dict[str, RunConfig] = {}
    for chosen in named:
        for seeded in [chosen] if a.alone else _siblings(chosen):
            key = f"{label(seeded.config)}-s{seeded.config.train.seed}"
            if asked.setdefault(key, seeded.config) != seeded.config:
                raise ConfigError(
                    f"two runs are {key} and differ in images, network or length: the comparison "
                    "would be one of these; compare runs that differ by their method"
                )
    _check_comparable(asked)
    test = _judged(asked, a.images, a.device)
    base = label(named[0].config)
    table = test.against(base)
    attack = next(iter(test.battery))
    seeds = ", ".join(f"{m} {len(test.keys(m))}" for m in test.methods)
    print(f"{test.dataset}, {test.labels(base).size} test images, {attack}; seeds: {seeds}")
    print(f"the intervals (95 %) are of the difference to {base}, in points\n")
    show_methods(a, table, f"{test.dataset} under {attack}", base)
    if a.out:
        _draw(test, base, a.out)
        tell_of(a.out)


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


def _draw(test: Evidence, base: str, folder: Path) -> None:
    """Writes the frontier of average and worst class, and the classes beside the base's."""
    import pandas as pd

    from crat import plots
    from crat.plots import methods as plots_methods

    folder.mkdir(parents=True, exist_ok=True)
    points = pd.concat(
        pd.DataFrame({"method": m} | {f: test.each(m, f) for f in ("average", "worst")})
        for m in test.methods
    )
    attack = next(iter(test.battery))
    title = f"{test.dataset}, {attack}: small dots are seeds"
    plots.save_in(folder, plots_methods.frontier(points, title=title), points, "frontier")
    classes = test.class_table(test.methods, attack)
    title = f"robust accuracy of each class under {attack} (%)"
    figure = plots_methods.class_heat(classes, base=base, title=title)
    plots.save_in(folder, figure, classes, "classes")
