"""`crat audit`: any model, judged class by class."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

from crat.cli.flags import add_own_images, data_named
from crat.cli.parsing import count, new_folder, positive
from crat.cli.tables import add_tables, write_class_tables
from crat.config import DATASETS, DTYPES, MODELS, ConfigError


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.set_defaults(command=run)
    add = parser.add_argument
    add(
        "subject",
        help="module:function, file.py:function or file.py:Class, a run by its name (crat runs "
        "lists them), or a weights file with --model",
    )
    add("--model", help=f"the architecture of the weights: {' | '.join(MODELS)}")
    add(
        "--weights",
        metavar="FILE",
        help="of the network that file.py:Class makes: .pt, .safetensors",
    )
    add("--key", metavar="NAME", help="which of several weights in the file, such as ema")
    add(
        "--data",
        help=f"{' | '.join(DATASETS)}, a folder of class folders, or an npz (default: the run's)",
    )
    add("--eps", help="the radius, such as 8/255 (default: the data set's protocol, L-inf)")
    add("--norm", default="Linf", help="Linf (default), L2 or L1")
    add(
        "--images",
        type=count,
        default=1000,
        help="so many test images, spread over the classes (default 1000); 0: all, and AutoAttack "
        "on a sample (--attacks PGD CW AA: on all)",
    )
    add(
        "--attacks",
        nargs="+",
        default=(),
        metavar="ATTACK",
        help="only these (default: with PGD and AA; with --images 0 AA-sampled instead)",
    )
    add("--logit-slice", type=int, metavar="K", help="the first K logits are the answers")
    add(
        "--resize",
        type=positive,
        metavar="N",
        help="scale the model's images to N x N pixels first",
    )
    add("--scale", type=float, default=1.0, help="that cosine logits were trained with")
    add("--dtype", default="auto", help=f"of the search: {' | '.join(DTYPES)}")
    add("--device", help="such as cpu or cuda:1")
    add("--seed", type=int, default=0)
    add(
        "--certify",
        action="store_true",
        help="also say which images no attack can break, by CROWN's lower bounds: for small chains "
        "of convolutions, BatchNorm, mean pools, dense layers and ReLU",
    )
    add(
        "--out",
        metavar="FOLDER",
        type=new_folder,
        help="of the report (default: audits/ among the runs)",
    )
    add_own_images(parser)
    add_tables(parser)


def run(a: Namespace) -> None:
    """Judges the model and writes its report."""
    from crat import audit

    if a.data is None:
        a.data = _data_of(a)
    a.data = data_named(a.data, a.size, streamed=a.stream)
    asked = {field.name: getattr(a, field.name) for field in fields(audit.Plan)}
    plan = audit.Plan(**asked | {"attacks": tuple(a.attacks)})
    judged = audit.main(a.subject, a.model, plan, a.device, a.out, a.key, a.weights)
    caption = f"{Path(a.subject).name} on {plan.data}, {plan.norm} {plan.eps}"
    write_class_tables(a, judged.outcomes, caption, judged.sampled)


def _data_of(a: Namespace) -> str:
    """The data set of the run that is meant; raises ConfigError where it is another subject."""
    if a.model or ":" in a.subject:
        raise ConfigError(f"which images? --data {' | '.join(DATASETS)} | a path of your own")
    from crat.audit.foreign import run_named

    return run_named(a.subject).config.data.name
