"""`crat evaluate` of a published run without its network or its images."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from crat import store
from crat.cli.flags import words_for
from crat.data.sources import found
from crat.names import ConfigError
from crat.outcomes import margins
from crat.outcomes.batteries import Battery
from crat.outcomes.cache import Outcomes
from crat.outcomes.evaluation import at_hand as readable
from crat.outcomes.evaluation import evaluate
from crat.store import Store
from crat.training.named import find_run
from crat.training.run import Run

SETTINGS = {
    "crafted_on": "examples crafted on another network",
    "keep": "some classes",
    "bias": "a bias on the logits",
    "temperature": "a temperature of each class",
    "images": "a sample of them",
}


def at_hand(
    run: Run,
    battery: Battery,
    settings: dict[str, Any],
    error: Exception,
    more: Sequence[str] = (),
) -> tuple[Outcomes, str]:
    """The outcomes of a battery that can be read without computing, and lines on the others.

    error: the reason why the others cannot be computed; raised where nothing can be read.
    more: names of attacks besides the battery's that cannot be computed either.
    """
    decided = {name: value for name, value in settings.items() if name != "device"}
    names = readable(run, battery, **decided)
    there = {name: attack for name, attack in battery.items() if {"clean", name} <= set(names)}
    missing = [name for name in battery if name not in there] + list(more)
    if not there and run.published and not run.published_weights(settings["which"]):
        line = f"`crat evaluate {run.name}` shows what is, and how to make the rest"
        rest = f" and {len(missing) - 3} more" if missing[3:] else ""
        what = f"{', '.join(missing[:3])}{rest} of {run.name}"
        raise type(error)(f"{what}: not published as asked, nor is its network; {line}")
    if not there:
        raise error
    return evaluate(run, there, **settings, loud=True), _lacking(run, missing, settings)


def _lacking(run: Run, names: list[str], settings: dict[str, Any]) -> str:
    """Lines on the missing outcomes, the commands that make them, and the published others."""
    flags = f"--split {settings['split']} --which {settings['which']}"
    if settings["first"]:
        flags += f" --images {settings['first']}"
    flags += f" --dtype {settings['dtype']} --attacks {' '.join(names)}"
    apart = ""
    made = run
    missing = ", ".join(names)
    network = run.published_weights(settings["which"])
    if run.published and not network:
        # outcomes of other weights may not be mixed with the published ones
        apart = " --recompute"
        made = replace(run, folder=Store.recomputed().root / run.name, published=None)
    if not network:
        missing += ", nor the network that would be attacked"
    data = run.config.data.name
    lines = [f"not published: {missing}; to have them:"]
    if not found(data):
        lines.append(f"  crat data fetch {data}")
    if not made.has_network(settings["which"]):
        lines += [f"  crat train{apart} {words}" for words in _trainings(made)]
    lines.append(f"  crat evaluate {run.name}{apart} {flags}")
    lines += [f"published: {line}" for line in others(run)]
    return "\n\n" + "\n".join(lines)


def _trainings(run: Run) -> list[str]:
    """The flags that train what is missing of a run: first of those it starts or learns from.

    An earlier run that is neither published nor in the store is left to the error of its use.
    """
    if run.trained_here:
        return []
    earlier: list[str] = []
    for name in run.config.train.earlier:
        with contextlib.suppress(ConfigError):
            start = find_run(name)
            if run.folder.parent == Store.recomputed().root or not start.published_weights():
                here = run.folder.parent / name
                earlier += _trainings(replace(start, folder=here, published=None))
    return [*earlier, words_for(run.config)]


def others(run: Run) -> list[str]:
    """A line of published outcomes for each choice of images and search."""
    groups: dict[str, list[str]] = {}
    if not run.published:
        return []
    for place, meta in margins.metas(run.published).items():
        store.published_file(run.published, place.path.relative_to(run.published).as_posix())
        name = meta["name"]
        if meta["attack"].startswith("Corruption("):  # without its severity
            name = name.rpartition("-")[0]
        names = groups.setdefault(_settings_of(meta), [])
        if name not in names:
            names.append(name)
    return [f"{settings}: {', '.join(names)}" for settings, names in groups.items()]


def _settings_of(meta: dict[str, Any]) -> str:
    """The images that were judged and the search, in words."""
    words = [f"{meta['split']} images", f"{meta['which']} epoch"]
    if meta.get("first"):
        words.append(f"the first {meta['first']}")
    if meta.get("dtype") not in (None, "float32"):
        words.append(f"search in {meta['dtype']}")
    words += [text for name, text in SETTINGS.items() if meta.get(name) is not None]
    return ", ".join(words)
