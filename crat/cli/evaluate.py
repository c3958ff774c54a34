"""`crat evaluate`: a trained or published run under attack, class by class."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from typing import TYPE_CHECKING, Any

from crat.cli.flags import add_own_images, data_named
from crat.cli.parsing import count
from crat.cli.tables import add_tables, write_class_tables, write_tables
from crat.names import one_of
from crat.text import booktabs, percent

if TYPE_CHECKING:
    import pandas as pd

    from crat.outcomes.batteries import Battery
    from crat.outcomes.cache import Outcomes
    from crat.outcomes.sampled import Sampled
    from crat.training.run import Run

CHOICES = {"split": ("test", "valid"), "which": ("best", "last"), "dtype": ("float32", "bfloat16")}


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("run", help="a run's folder, its name or a part of the name (crat runs lists them)")
    add("--split", default="test", help="test (default) or valid")
    add("--which", default="best", help="the epoch: best (default) or last")
    add(
        "--attacks",
        nargs="+",
        metavar="ATTACK",
        help="only these: FGSM, PGD-20, CW-20 (default: the three), Square, AA; AA-sampled: AA on "
        "a sample of PGD's and CW's survivors, with an estimate for each class",
    )
    add(
        "--images",
        type=count,
        metavar="N",
        help="so many, spread over the classes (AA takes hours for all on a CPU)",
    )
    add(
        "--dtype",
        help="of the search: float32 or bfloat16 (default: as it was published, else float32)",
    )
    add(
        "--corruptions",
        action="store_true",
        help="the fifteen of CIFAR-10-C instead: error and mean error",
    )
    add("--frost", metavar="FOLDER", help="textures for frost, which is left out without them")
    add(
        "--recompute",
        action="store_true",
        help="leave published results aside: the run as `crat train --recompute` made it",
    )
    add("--device", help="such as cpu or cuda:1")
    add(
        "--data",
        metavar="NAME|PATH",
        help="other test images, of the same classes and shape as the run's: a data set, or yours",
    )
    add_own_images(parser)
    add_tables(parser)


def run(a: Namespace) -> int:
    """Prints a table of the classes; returns 1 where an outcome that was asked for is missing."""
    from crat.cli import published
    from crat.data import DataError
    from crat.outcomes.evaluation import MissingWeights, evaluate, judged_as_published
    from crat.training.named import find_run, label

    asked = find_run(a.run, a.recompute)
    battery, estimated = chosen_battery(a, asked.config.data.name)
    for setting, allowed in CHOICES.items():
        if getattr(a, setting) is not None:
            setattr(a, setting, one_of(setting, getattr(a, setting), allowed))
    settings = {"split": a.split, "which": a.which, "first": a.images, "device": a.device}
    settings["test_set"] = data_named(a.data, a.size, streamed=a.stream) if a.data else ""
    # published: the first images as they come, some searched in bfloat16
    decided = {name: settings[name] for name in ("split", "which", "first", "test_set")}
    searches = [a.dtype] if a.dtype else CHOICES["dtype"]
    as_published = [d for d in searches if judged_as_published(asked, battery, **decided, dtype=d)]
    settings["spread"] = not as_published
    settings["dtype"] = as_published[0] if as_published else a.dtype or "float32"
    lacking = ""
    sampled = None
    loud: dict[str, Any] = {"loud": True, "progress": sys.stderr.isatty()}
    try:
        found = evaluate(asked, battery, **settings, **loud)
        if estimated:
            sampled = sampled_outcomes(asked, found, settings | loud)
    except (MissingWeights, DataError) as error:
        found, lacking = published.at_hand(asked, battery, settings, error, estimated)
    images = f"{_amount(a.images, settings['spread'])}{a.split} images"
    if a.data:
        images += f" of {settings['test_set']}"
    print(f"{asked.name}, {images}, {a.which} epoch, search in {settings['dtype']}")
    caption = f"{label(asked.config)}, {settings['test_set'] or asked.config.data.name}"
    if a.corruptions:
        print(corruption_table(found) + lacking)
        write_tables(a, *corruption_files(found, caption))
    else:
        print(attack_table(found, sampled) + lacking)
        write_class_tables(a, found, caption, sampled)
    # of the default attacks, the published ones are a whole answer
    return 1 if lacking and (a.corruptions or a.attacks) else 0


def chosen_battery(a: Namespace, dataset: str) -> tuple[Battery, list[str]]:
    """The attacks or corruptions of the flags, by name, and the name of one on a sample, if any.

    Raises ConfigError.
    """
    from crat.corruptions import corruption_battery
    from crat.outcomes.batteries import (
        HUNTER,
        SAMPLED,
        hunting_battery,
        standard_battery,
        strong_battery,
        usual_battery,
    )

    standard = standard_battery(dataset)
    attacks: dict[str, Any] = standard | hunting_battery(dataset) | strong_battery(dataset)
    names = [one_of("attack", name, [*attacks, SAMPLED]) for name in a.attacks or standard]
    if a.corruptions:
        return corruption_battery(frost=a.frost), []
    if SAMPLED not in names:
        return {name: attacks[name] for name in names}, []
    first = (hunting_battery if HUNTER in names else usual_battery)(dataset)
    names = [name for name in names if name != SAMPLED]
    return {name: attacks[name] for name in names} | first, [SAMPLED]


def sampled_outcomes(run: Run, found: Outcomes, settings: dict[str, Any]) -> Sampled:
    """AutoAttack on a sample of the images; found: the outcomes on all of them."""
    from crat.analysis.two_phase import Design
    from crat.outcomes.ask import on_sample
    from crat.outcomes.batteries import HUNTER, hunting_battery, usual_battery
    from crat.outcomes.sampled import Sampled

    hunts = HUNTER in found.predictions
    first = list((hunting_battery if hunts else usual_battery)(run.config.data.name))
    attack = partial(on_sample, run, settings=settings)
    return Sampled.of(found, first, Design(), attack)


def _amount(images: int | None, spread: bool) -> str:
    if images is None:
        return ""
    return f"{images} spread " if spread else f"the first {images} "


def attack_table(found: Outcomes, sampled: Sampled | None = None) -> str:
    """A row for each class: accuracies and their intervals, clean and under each attack.

    sampled: AutoAttack on a sample, whose estimates are a table below.
    """
    from crat.outcomes.tables import class_table, estimate_table

    return class_table(found) + (f"\n\n{estimate_table(sampled)}" if sampled else "")


def corruption_table(found: Outcomes) -> str:
    """Errors in percent by corruption and severity, and their means."""
    from crat.analysis import mce

    errors = corruption_errors(found)
    table = errors.pivot(index="corruption", columns="severity", values="error")
    return f"{(100 * table).round(1).to_string(na_rep='')}\n\n{mce.mce(errors).to_string()}"


def corruption_files(found: Outcomes, caption: str) -> tuple[pd.DataFrame, str]:
    """The errors as a table of fractions, and by severity for a paper."""
    errors = corruption_errors(found)
    table = errors.pivot(index="corruption", columns="severity", values="error")
    header = ["corruption", *(f"severity {severity}" for severity in table.columns)]
    rows = [
        [str(name), *("" if value != value else percent(value) for value in values)]  # nan: absent
        for name, values in zip(table.index, table.to_numpy(), strict=True)
    ]
    return errors, booktabs(header, [rows], f"{caption}: error in percent by severity")


def corruption_errors(found: Outcomes) -> pd.DataFrame:
    """A row for each corruption and severity (`mce.corruption_errors`)."""
    from crat.analysis import mce

    attacked = {name: answers for name, answers in found.predictions.items() if name != "clean"}
    return mce.corruption_errors(found.y, found.clean, attacked)
