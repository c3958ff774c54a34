"""What `crat evaluate` says of a published run, where neither its weights nor its images are here."""

from __future__ import annotations

import json
from typing import Any

from crat import store
from crat.data import found
from crat.evaluate import at_hand as readable
from crat.evaluate import evaluate
from crat.flags import words_for
from crat.run import Run
from crat.verdicts import Battery, Outcomes

SETTINGS = {"crafted_on": "examples crafted on another network", "keep": "some classes", "bias": "a bias on the logits"}


def at_hand(run: Run, battery: Battery, settings: dict[str, Any], error: Exception) -> tuple[Outcomes, str]:
    """The outcomes of a battery that can be read without computing anything, and lines on the others.

    error: why those cannot be made; raised where nothing can be read.
    """
    names = readable(run, battery, **{name: value for name, value in settings.items() if name != "device"})
    there = {name: attack for name, attack in battery.items() if "clean" in names and name in names}
    missing = [name for name in battery if name not in there]
    if not there and run.published:
        line = f"`crat evaluate {run.name}` shows what is, and how to make the rest"
        what = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise type(error)(f"{what} of {run.name}: not published as asked, nor is its network; {line}")
    if not there:
        raise error
    return evaluate(run, there, **settings, loud=True), _lacking(run, missing, settings)


def _lacking(run: Run, names: list[str], settings: dict[str, Any]) -> str:
    """Which outcomes are not there; how to make them; what else was published."""
    first = f" --images {settings['first']}" if settings["first"] else ""
    asked = f"--split {settings['split']} --which {settings['which']}{first} --dtype {settings['dtype']}"
    apart = "CRAT_RECOMPUTE=1 " if run.published else ""  # other weights' outcomes may not be mixed with these
    data = run.config.data.name
    lines = [
        f"not published: {', '.join(names)}, nor the network that would be attacked; to have them:",
        *([] if found(data) else [f"  crat data fetch {data}"]),
        *([] if run.trained_here else [f"  {apart}crat train {words_for(run.config)}"]),
        f"  {apart}crat evaluate {run.name} {asked} --attacks {' '.join(names)}",
        *(f"published: {line}" for line in others(run)),
    ]
    return "\n\n" + "\n".join(lines)


def others(run: Run) -> list[str]:
    """A line for each kind of published outcomes: of which images and which search, and under which names."""
    groups: dict[str, list[str]] = {}
    for path in sorted((run.published / "eval").glob("*.npz")) if run.published else ():
        meta = json.loads(str(store.read_arrays(path)["meta"]))
        what = [f"{meta['split']} images", f"{meta['which']} epoch"]
        what += [f"the first {meta['first']}"] if meta.get("first") else []
        what += [f"search in {meta['dtype']}"] if meta.get("dtype") not in (None, "float32") else []
        what += [text for name, text in SETTINGS.items() if meta.get(name) is not None]
        name = meta["name"].rpartition("-")[0] if meta["attack"].startswith("Corruption(") else meta["name"]
        group = groups.setdefault(", ".join(what), [])
        if name not in group:
            group.append(name)
    return [f"{what}: {', '.join(names)}" for what, names in groups.items()]
