"""The table "paper / released code / crat" of each method, for terminal and docs/methods.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from crat.attacks.gradient import PGD
from crat.defenses import DEFENSES, Defense, Row, Task

HEAD = """# The training methods

Each section says what a method minimises, where it comes from, and what three sides set: the
paper, its released code and crat. A dash means that the value is not stated, or that we have not
seen it. `crat methods --markdown > docs/methods.md` writes this page from the presets in
`crat/defenses/`, and a test holds the page to them.

On the command line, `crat train --defense NAME` trains with crat's settings. `--preset paper` and
`--preset released` take those of the paper or of its code. `--options name=value` changes an option
of the method.

In Python, `config.but(**preset("cfa", "released", base="trades"))` does the same. Without its
preset a method has the settings of the run: `but(defense="cfa")` has no gated average,
`but(**preset("cfa"))` has it.
"""

# Looked for on 27 November 2026, by name, title and arXiv number: work, idea, what is known of its
# numbers, code, where this was read.
NOT_HERE = (
    (
        "TRIX (Medi, Jung and Keuper 2025, arXiv 2507.07768)",
        "weak targeted attacks, with uniform targets, for strong classes; untargeted ones for weak "
        "classes; a weight and a margin for each class",
        "not read",
        "found: Fairness-a11y/TRIX@cdeb435fde5c538842c08203aee51f8b80754da6, built on DAFA's code, "
        "an account without a name; not read closely, no method of crat yet",
        "the abstract, and losses.py of the code",
    ),
    (
        "RL-FAT (Medi, Mikeladze and Keuper 2026, BMVC, arXiv 2608.29247)",
        "behind a warm-up, the prediction is a policy and its being right the reward; a running "
        "value of each class gives the advantage; a second loss presses classes whose loss under "
        "attack is above the average",
        "not read",
        "not found",
        "the abstract, and the captions of its figures 1 and 2",
    ),
    (
        "FairAT (Mou, Yue, Zhao and Wang 2025, Front. Comput. Sci. 19(3) 193803)",
        "hard examples, those of higher cross-entropy, are augmented to be more diverse throughout "
        "training",
        "WRN-28-10 on CIFAR-10: average robustness +2.13, worst class +4.5 points, against what is "
        "not said",
        "not found",
        "the abstract, doi 10.1007/s11704-024-3587-1",
    ),
)
NOT_HERE_HEAD = """
## Methods that are not here

Works on class-wise robustness that were looked for, and what is known of them. "Not found" is no
proof that there is no code.

| work | idea | numbers | code | read |
|---|---|---|---|---|
"""


def listing() -> list[tuple[str, str, str]]:
    """Name, first line and options with their defaults, of each method."""
    return [(name, _first_line(method), _options(method)) for name, method in DEFENSES.items()]


def markdown(names: list[str] | None = None) -> str:
    """A section for each method: formula, sources, and a table for each of its variants.

    Of all methods, also a table of those that are not here.
    """
    text = HEAD + "".join(_section(name, DEFENSES[name]) for name in names or DEFENSES)
    return text if names else text + NOT_HERE_HEAD + "".join(map(_cells, NOT_HERE))


def _section(name: str, method: type[Defense]) -> str:
    text = f"\n## `{name}`\n\n{inspect.getdoc(method)}\n\n"
    sources = {
        "Paper": method.paper,
        "Code": method.code,
        "Head": method.head,
        "Options": _options(method),
        "Step on a GPU": ", or ".join(dict.fromkeys(_ways(method))),
    }
    text += "".join(f"- {what}: {said}\n" for what, said in sources.items() if said)
    for chosen in method.variants:
        rows = method.table(**chosen)
        if rows:
            title = ", ".join(f"{key}={value}" for key, value in chosen.items())
            text += f"\nWith {title}:\n\n" if title else "\n"
            text += "| | paper | released code | crat | why |\n|---|---|---|---|---|\n"
            text += "".join(_line(row, method) for row in rows)
    return text


def _ways(method: type[Defense]) -> Iterator[str]:
    """How crat.training.step does the step of each variant on a GPU."""
    for chosen in method.variants:
        of = " with " + ", ".join(f"{key}={value}" for key, value in chosen.items())
        variant = of if chosen else ""
        mode = method.crafting(**chosen)[1]
        if always := _ready(method, chosen, mode).waits:
            yield f"eager{variant} ({always})"
            continue
        folded = mode == "eval"
        yield f"recorded{', BatchNorm folded for the attack' if folded else ''}{variant}"
        moving = _ready(method, chosen, "moving").waits
        if moving:
            yield f"eager{variant} under batch_norm=moving ({moving})"


def _ready(method: type[Defense], chosen: dict[str, Any], batch_norm: str) -> Defense:
    """The method ready for ten classes."""
    defense = method(PGD(8 / 255, 2 / 255, batch_norm=batch_norm), **chosen)
    defense.prepare(Task(torch.ones(10)))
    return defense


def _line(row: Row, method: type[Defense]) -> str:
    own = method.options()
    ours = row.crat
    if ours is None:
        ours = own.get(row.name, "as the profile says")
    cells = (row.name, _said(row.paper), _said(row.released), _said(ours), row.why)
    return _cells(cells)


def _cells(cells: tuple[object, ...]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def _said(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _options(method: type[Defense]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in method.options().items())


def _first_line(method: type[Defense]) -> str:
    return " ".join((inspect.getdoc(method) or "").split("\n\n")[0].split())
