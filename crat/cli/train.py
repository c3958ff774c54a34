"""`crat train`: one model, with a flag for each field of the config."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from typing import TYPE_CHECKING

from crat.cli.flags import add_own_images, add_settings, asked_for, words_for
from crat.cli.recipes import RECIPES
from crat.config import PROFILES, ConfigError
from crat.text import aligned, percent, shown

if TYPE_CHECKING:
    from crat.training.run import Run

FILES = (".pth", ".pt", ".ckpt", ".safetensors")  # the ends of a weights file's name


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("--profile", default="quick", help=" | ".join(PROFILES))
    add("--recipe", help=f"start from a speed recipe instead of a profile: {' | '.join(RECIPES)}")
    add("--device", help="such as cpu or cuda:1 (default: the first GPU, else the CPU)")
    add("--max-minutes", type=float, help="stop at the end of the epoch in which they have passed")
    add(
        "--recompute",
        action="store_true",
        help="train it even if it was published, in a store of its own",
    )
    add("--progress", help="bar | line | none (default: bar in a terminal, else line)")
    add("--preset", help="whose settings of the method: paper | released | crat (default)")
    add(
        "--key", metavar="NAME", help="which weights of a file that --start-from or --teacher names"
    )
    add("--beta", type=float, metavar="X", default=SUPPRESS, help="short for --options beta=X")
    add_own_images(parser)
    add_settings(parser)


def run(a: Namespace) -> None:
    """Trains the model, and prints its best epoch class by class."""
    named = [name for name in ("start_from", "teacher") if name in a]
    if a.key and not any(getattr(a, name).endswith(FILES) for name in named):
        raise ConfigError(
            "--key chooses among the weights of a file that --start-from or --teacher names"
        )
    earlier = {run.name: run for name in named if (run := _earlier(a, name))}
    config = asked_for(a)
    from crat import distributed
    from crat.store import Store, StoreError, must_be_writable
    from crat.training.start import MissingStart
    from crat.training.trainer import train

    where = Store.chosen(a.recompute)
    must_be_writable(where.root, "CRAT_RUNS")
    try:
        finished = train(
            config,
            device=a.device,
            max_minutes=a.max_minutes,
            progress=a.progress,
            store=where,
        )
    except MissingStart as missing:
        if missing.start not in earlier:
            raise
        again = " --recompute" if a.recompute else ""
        command = f"crat train{again} {words_for(earlier[missing.start].config)}"
        raise StoreError(f"{missing.problem}; train it first: {command}") from None
    first = distributed.rank() == 0
    distributed.leave()
    if first:
        print(summary(finished))


def _earlier(a: Namespace, setting: str) -> Run | None:
    """The run that --start-from or --teacher means, None for a file.

    Its name takes the place of what was typed.

    Raises ConfigError where no run of the store, or more than one, is meant.
    """
    from crat.store import Store
    from crat.training.named import find_run
    from crat.training.start import keep_file

    typed = getattr(a, setting)
    if typed.endswith(FILES):
        setattr(a, setting, keep_file(typed, a.key, Store.chosen(a.recompute)))
        return None
    run = find_run(typed, a.recompute)
    place = Store.chosen(a.recompute).root
    if run.folder.resolve() != (place / run.name).resolve():
        flag = setting.replace("_", "-")
        raise ConfigError(
            f"--{flag} takes a run of the store, {place}, which CRAT_RUNS names; "
            f"{typed} lies elsewhere"
        )
    setattr(a, setting, run.name)
    return run


def summary(run: Run) -> str:
    """The run's name, folder and epochs, and the accuracies of its best epoch as a table."""
    card = run.here.card()
    history = run.here.history()
    best = card["best"]["epoch"]
    epochs = f"epoch {card['epochs_done']} of {run.config.train.epochs}"
    if not card["finished"]:
        epochs += ", not finished: the same command resumes it"
    rows = history[(history.epoch == best) & (history.split == "valid")]
    clean = map(percent, rows.clean_acc)
    robust = map(percent, rows.robust_acc)
    header = ("class", "images", "clean %", "robust %")
    table = aligned(header, zip(rows["class"], rows.n, clean, robust, strict=True))
    return (
        f"\n{run.name}\n{shown(run.folder)}: {epochs}\n"
        f"the best epoch on validation images is {best}:\n{table}"
    )
