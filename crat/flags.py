"""The flags of the larger commands; those of `crat train` are one for each field of the config's dataclasses."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from crat import config as c
from crat.config import PROFILES, ConfigError, RunConfig, profile
from crat.names import did_you_mean, one_of
from crat.recipes import RECIPES, recipe

KNOWN = {
    "data": c.DATASETS, "model": c.MODELS, "head": c.HEADS, "schedule": c.SCHEDULES, "average": c.AVERAGES,
    "defense": ("one that crat methods lists",), "split": ("stratified", "first"), "padding": ("reflect", "zero"),
    "augment": ("auto", "none", "crop", "crop_flip"), "batch_norm": c.BATCH_NORMS, "dtype": c.DTYPES,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line that know what is near."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> Any:
        """One line instead of the usage; of a command or flag that is mistyped, with those that are near."""
        said = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if said:
            message += did_you_mean(said[1], re.findall(r"[\w-]+", said[2]))
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each command refuses what it does not know itself, as it knows which of its flags are near."""
        namespace, stray = super().parse_known_args(args, namespace)
        if stray:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = did_you_mean(stray[0].partition("=")[0], flags) if stray[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(stray)}{near}")
        return namespace, stray


def commands(parser: argparse.ArgumentParser, names: str, **settings: Any) -> Any:
    """What adds a command to a parser; alone, without one, the parser prints its help."""

    def help(_: Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(command=help)
    return parser.add_subparsers(metavar=names, **settings).add_parser


def audit_flags(sub: argparse.ArgumentParser) -> None:
    """What `crat audit` takes."""
    sub.add_argument("subject", help="module:function, file.py:function, or a weights file with --model")
    sub.add_argument("--model", help=f"the architecture of the weights: {' | '.join(c.MODELS)}")
    sub.add_argument("--key", metavar="NAME", help="which of several weights in the file, such as ema")
    sub.add_argument("--data", required=True, help=" | ".join(c.DATASETS))
    sub.add_argument("--eps", help="the radius, such as 8/255 (default: the data set's protocol, L-inf)")
    sub.add_argument("--norm", default="Linf", help="Linf (default), L2 or L1")
    sub.add_argument(
        "--images", type=count, default=1000, help="so many test images, spread over the classes (default 1000); 0: all"
    )
    sub.add_argument("--attacks", nargs="+", default=(), metavar="ATTACK", help="only these (default: with PGD and AA)")
    sub.add_argument("--logit-slice", type=int, metavar="K", help="the first K logits are the answers")
    sub.add_argument("--scale", type=float, default=1.0, help="that cosine logits were trained with")
    sub.add_argument("--dtype", default="auto", help=f"of the search: {' | '.join(c.DTYPES)}")
    sub.add_argument("--device", help="such as cpu or cuda:1")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", metavar="FOLDER", help="of the report (default: audits/ among the runs)")


def evaluate_flags(sub: argparse.ArgumentParser) -> None:
    """What `crat evaluate` takes."""
    sub.add_argument("run", help="a run's folder, its name or a part of the name (crat runs lists them)")
    sub.add_argument("--split", default="test", help="test (default) or valid")
    sub.add_argument("--which", default="best", help="the epoch: best (default) or last")
    sub.add_argument(
        "--attacks",
        nargs="+",
        metavar="ATTACK",
        help="only these: FGSM, PGD-20, CW-20 (default: the three), Square, AA",
    )
    sub.add_argument(
        "--images",
        type=count,
        metavar="N",
        help="so many, spread over the classes (AA takes hours for all on a CPU)",
    )
    sub.add_argument("--dtype", help="of the search: float32 or bfloat16 (default: as it was published, else float32)")
    sub.add_argument(
        "--corruptions", action="store_true", help="the fifteen of CIFAR-10-C instead: error and mean error"
    )
    sub.add_argument("--frost", metavar="FOLDER", help="textures for frost, which is left out without them")
    sub.add_argument("--device", help="such as cpu or cuda:1")


def course_flags(sub: argparse.ArgumentParser) -> None:
    """What `crat course build` takes."""
    sub.add_argument(
        "--check", action="store_true", help="only compare; an exercise that is not up to date is an error"
    )
    sub.add_argument("--repository", metavar="OWNER/NAME", help="on GitHub, for the badges (default: CITATION.cff's)")


def reproduce_flags(sub: argparse.ArgumentParser) -> None:
    """What `crat reproduce` takes."""
    sub.add_argument("numbers", nargs="*", metavar="NN", help="which notebooks, such as 01 or 04 (default: all)")
    sub.add_argument("--papers", nargs="+", default=[], metavar="PAPER", help="the same by name, such as spat or tian")
    sub.add_argument("--profile", help=f"{' | '.join(PROFILES)} (default: the parameter file's, else quick)")
    sub.add_argument("--data", metavar="NAME", help=f"another data set for all runs: {' | '.join(c.DATASETS)}")
    sub.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of the runs that are repeated (default: 0 1 2)")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebooks")
    sub.add_argument("--parameters", type=Path, metavar="FILE", help="parameters in YAML, as papermill -f takes them")
    sub.add_argument("--workers", type=int, metavar="N", help="processes here (default: a GPU each, or up to 4 cores)")
    sub.add_argument("--dask", metavar="ADDRESS|FILE", help="train on the workers of this dask scheduler")
    sub.add_argument("--shard", metavar="I/N", help="only the I-th of N parts of the runs, and no notebook")
    sub.add_argument("--recompute", action="store_true", help="train everything again, published runs included")
    sub.add_argument("--dry-run", action="store_true", help="show the plan only: what is to be done, and how long it takes")


def train_flags(sub: argparse.ArgumentParser) -> None:
    """One flag per field of the config's dataclasses; its help shows what the profiles say."""
    sub.add_argument("--profile", default="quick", help=" | ".join(PROFILES))
    sub.add_argument("--recipe", help=f"start from a speed recipe instead of a profile: {' | '.join(RECIPES)}")
    sub.add_argument("--device", help="such as cpu or cuda:1 (default: the first GPU, else the CPU)")
    sub.add_argument("--compile", action="store_true", help="torch.compile, worth its start-up time on long runs")
    sub.add_argument("--max-minutes", type=float, help="stop at the end of the epoch in which they have passed")
    sub.add_argument("--progress", help="bar | line | none (default: bar in a terminal, else line)")
    sub.add_argument("--preset", help="whose settings of the method: paper | released | crat (default)")
    for part, setting, name in settings():
        values = [str(getattr(getattr(profile(p), part), setting.name)).replace("None", "its own") for p in PROFILES]
        text = values[0] if len(set(values)) == 1 else ", ".join(map(" ".join, zip(PROFILES, values, strict=True)))
        known = f"{' | '.join(KNOWN[name])}: " if name in KNOWN else ""
        sub.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=known + text, **_kind(setting))


def settings() -> Iterator[tuple[str, Field, str]]:
    """Part of the config, field, and the name by which `RunConfig.but` knows it."""
    for part in ("data", "model", "train"):
        for setting in fields(getattr(RunConfig(), part)):
            yield part, setting, part if setting.name == "name" else setting.name


def _kind(setting: Field) -> dict[str, Any]:
    """How the text of a flag becomes a value; "8/255" stays as it is written."""
    annotation = str(setting.type)
    if annotation == "Options":
        return {"type": option, "nargs": "*", "metavar": "NAME=VALUE"}
    if annotation.startswith("tuple"):
        return {"type": int, "nargs": "*", "metavar": "LABEL"}
    kind = str if "str" in annotation else float if "float" in annotation else int
    return {"type": kind, "metavar": {str: "TEXT", float: "X", int: "N"}[kind]}


WORDS = {"true": True, "false": False, "none": None}


EVALUATED = {"split": ("test", "valid"), "which": ("best", "last"), "dtype": ("float32", "bfloat16")}


def count(text: str) -> int:
    """A number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number from 0 on, not {text!r}")
    return int(text)


def option(text: str) -> tuple[str, Any]:
    """A setting of a method: "lambda_1=0.5"."""
    name, _, value = text.partition("=")
    try:
        return name, WORDS[value] if value in WORDS else ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def words_for(config: RunConfig) -> str:
    """The flags with which `crat train` makes the run of a config: what differs from the profile and the preset."""
    from crat.run import Run

    chosen: dict[str, Any] = {"defense": config.train.defense}
    for _ in range(2):  # the first makes the method's preset known, the second undoes what is other than it
        made = Run.of(asked_for(Namespace(profile="quick", recipe=None, preset=None, **chosen))).config
        for part, setting, name in settings():
            value = getattr(getattr(config, part), setting.name)
            if value != getattr(getattr(made, part), setting.name):
                chosen[name] = value
    return " ".join(f"--{name.replace('_', '-')} {_typed(value)}".rstrip() for name, value in chosen.items())


def _typed(value: Any) -> str:
    """A setting as it is typed after its flag."""
    if not isinstance(value, tuple):
        return str(value)
    words = ("=".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return " ".join(map(shlex.quote, words))


def asked_for(a: Namespace) -> RunConfig:
    """The config that the flags ask for: the profile or recipe, then the preset, then what is given by hand."""
    names = {name for _, _, name in settings()}
    given = {name: value for name, value in vars(a).items() if name in names}
    config = recipe(a.recipe) if a.recipe else profile(a.profile)
    if a.preset or "defense" in given:
        from crat.defenses import DEFENSES, method_named, preset

        given["defense"] = defense = one_of("defense", given.get("defense", config.train.defense), DEFENSES)
        chosen = dict(given.pop("options", ()))
        if method_named(defense).options().get("beta", c.TrainConfig.beta) != c.TrainConfig.beta and "beta" in given:
            chosen["beta"] = given.pop("beta")  # a method whose own default is another takes it as an option
        changes = preset(defense, a.preset or "crat", **chosen)
        if "beta" in given:  # by hand, it goes before a preset's
            changes["options"].pop("beta", None)
        config = config.but(**changes)
    return config.but(**given)
