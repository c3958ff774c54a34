"""Evaluation: the only file that knows batteries of attacks. What is kept is each sample's logits, never an average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crat import data, manifest, store
from crat.attacks import FGSM, PGD, Attack, AutoAttack, Decision, LogitBias, Square, cw, temperature_pgd
from crat.config import PROTOCOLS, ConfigError, RunConfig, number
from crat.device import pick_device
from crat.run import Run, classes_in_turn
from crat.store import Store
from crat.train import train
from crat.verdicts import Battery, Outcomes, Subject, Verdicts

TEMPERATURES = (1 / 50, 1 / 20, 1 / 10, 1 / 5, 1 / 2, 1.0, 2.0, 5.0, 10.0)


def protocol_pgd(dataset: str, restarts: int = 1) -> PGD:
    """The test attack of a data set's protocol (PROTOCOLS): PGD-20 at 8/255 for CIFAR-10."""
    p = PROTOCOLS[dataset]
    return PGD(number(p.eps), number(p.test_step_size), p.test_steps, restarts=restarts)


def standard_battery(dataset: str) -> dict[str, Attack]:
    """FGSM, PGD and CW at the data set's test protocol, with names such as "PGD-20"."""
    pgd = protocol_pgd(dataset)
    return {"FGSM": FGSM(pgd.eps), f"PGD-{pgd.steps}": pgd, f"CW-{pgd.steps}": cw(pgd)}


def strong_battery(dataset: str) -> dict[str, Attack | AutoAttack]:
    """Square and AutoAttack at the data set's budget: hours on a CPU for 10,000 images, so mind `first`."""
    eps = number(PROTOCOLS[dataset].eps)
    return {"Square": Square(eps), "AA": AutoAttack(eps)}


def temperature_battery(dataset: str, temperatures: Sequence[float] = TEMPERATURES) -> dict[str, Attack]:
    """Temperature-PGD at every temperature, named by it: "T=0.02" ... (T = 1 is PGD)."""
    return {f"T={t:g}": temperature_pgd(protocol_pgd(dataset), t) for t in temperatures}


def evaluate(
    run: Run,
    battery: Battery,
    *,
    split: str = "test",
    which: str = "best",
    crafted_on: Run | None = None,
    keep_classes: Sequence[int] | None = None,
    bias: Sequence[float] | None = None,
    first: int | None = None,
    spread: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    tell: Callable[[str], None] | None = print,
    loud: bool = False,
) -> Outcomes:
    """Outcomes of a trained run on the clean images of a split and under each attack, computed once and kept.

    split: "test" or "valid"; which: "best" or "last"; crafted_on: a run whose examples are transferred to this one;
    keep_classes: judge a model that may answer these classes only, on their images, labels renumbered;
    bias: added to the logits of the classes, and seen by the attack (the change at inference of Tian et al.);
    first: only so many images, from the start; with spread each class in turn gives its next one, so that they are
    spread evenly; dtype: of the search for adversarial examples, the verdict is float32.
    What was computed before (here or under results/) is read, an outcome on more images serves for fewer, and one on
    fewer, or of a killed evaluation, is continued. tell: gets a line on what is read again from the store (None:
    silent), and with `loud` on what is published. An attack of yours is told from others by its code and its state
    (crat.identity); where they cannot be read, its outcome is not kept.
    Raises ConfigError on an unknown split, store.StoreError where the run has no weights, and where a file is damaged
    or not what it says, or not as it was published.
    """
    keep = sorted(keep_classes) if keep_classes is not None else None
    decided_by = _decided_by(
        run, split=split, which=which, crafted_on=crafted_on, keep=keep, bias=bias, first=first, spread=spread,
        dtype=dtype, seed=seed,
    )  # fmt: skip

    def load() -> Subject:
        where = pick_device(device)
        images = data.load(run.config.data)
        x, y = (getattr(images, f"{part}_{split}").to(where) for part in "xy")
        model = _model(run, which, where)
        source = _model(crafted_on, which, where) if crafted_on else None
        if keep is not None:
            inside = torch.isin(y, torch.tensor(keep, device=where))
            x, y = x[inside], torch.searchsorted(torch.tensor(keep, device=where), y[inside])
            model = Decision(model, keep).to(where)
            source = Decision(source, keep).to(where) if source else None
        if bias is not None:
            model = LogitBias(model, torch.tensor(bias)).to(where)
        chosen = classes_in_turn(y)[:first] if first and spread else slice(first)
        return Subject(model, source, x[chosen], y[chosen])

    classes = run.card()["classes"]
    verdicts = Verdicts(run.name, _folders(run), decided_by, load, progress, run.published, tell, loud)
    return verdicts.of(battery, split, classes if keep is None else [classes[k] for k in keep])


def judged(run: Run, battery: Battery, **settings: Any) -> bool:
    """Whether `evaluate(run, battery, ...)` would only read; settings: split, which, first, spread, dtype, seed ..."""
    return len(at_hand(run, battery, **settings)) == 1 + len(battery)


def at_hand(run: Run, battery: Battery, **settings: Any) -> list[str]:
    """The names of a battery, "clean" among them, that `evaluate` with these settings would only read."""
    if not run.finished:
        return []
    places = Verdicts(run.name, _folders(run), _decided_by(run, **settings), _never)
    return [name for name, attack in {"clean": None, **battery}.items() if places.is_kept(attack)]


def judged_as_published(run: Run, battery: Battery, **settings: Any) -> bool:
    """Whether this very outcome is published of each attack of a battery."""
    if not run.published:
        return False
    places = Verdicts(run.name, (), _decided_by(run, **settings), _never)
    return all((run.published / places.path(attack)).exists() for attack in (None, *battery.values()))


def _never() -> Subject:
    raise AssertionError("nothing is judged here")


def _folders(run: Run) -> list[Path]:
    return [*([run.published] if run.published else []), run.folder]


def _decided_by(
    run: Run,
    *,
    split: str = "test",
    which: str = "best",
    crafted_on: Run | None = None,
    keep: Sequence[int] | None = None,
    bias: Sequence[float] | None = None,
    first: int | None = None,
    spread: bool = False,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, Any]:
    """What decides an outcome besides the attack."""
    if split not in ("test", "valid"):
        raise ConfigError(f"split is 'test' or 'valid', not {split!r}")
    if first is not None and first < 1:
        raise ConfigError(f"the first so many images are at least 1, not {first}")
    asked: dict[str, Any] = {"first": first, "bias": None if bias is None else [float(b) for b in bias]}
    asked["order"] = "classes in turn" if first and spread else None
    return {
        "split": split, "which": which, "seed": seed, "keep": keep, "dtype": dtype, "weights": _weights(run, which),
        "crafted_on": _weights(crafted_on, which) if crafted_on else None,
    } | {name: value for name, value in asked.items() if value}  # fmt: skip


def outcomes(
    config: RunConfig, battery: Battery, *, progress: str | None = None, store: Store | None = None, **settings
) -> Outcomes:
    """What a notebook asks for: reads what is kept, here or under results/; trains and attacks what is missing.

    What is read from the store says so in a line with its date, but for progress="none"; what is published is quiet.
    store: where runs are (None: the usual one).
    """
    run = Run.of(config, settings.get("device"), store)
    if progress == "none":
        settings = {"tell": None} | settings
    try:
        return evaluate(run, battery, **settings)
    except MissingWeights:
        for needed in filter(None, (run, settings.get("crafted_on"))):
            train(needed.config, device=settings.get("device"), progress=progress, store=store)
        return evaluate(run, battery, **settings)


class MissingWeights(store.StoreError):
    """An outcome that is not kept, of a run whose weights are not here."""


def _model(run: Run, which: str, device: torch.device) -> nn.Module:
    """The network of a run as it decides: of an augmented head, the class logits only."""
    if not run.trained_here:
        raise MissingWeights(f"{run.name} is not trained here: `crat train` or train(config) does it")
    model = run.model(which, device)
    if store.fingerprint(model.state_dict()) != _weights(run, which):
        raise store.StoreError(
            f"{run.name} was published with other weights than are here, and their outcomes may not be mixed: "
            "--recompute, or a Store without published results, leaves those aside"
        )
    if run.config.model.head == "augmented":
        return Decision(model, slice(len(run.card()["classes"])))
    return model


def _weights(run: Run, which: str) -> str:
    """The fingerprint of a run's weights, from its card."""
    if which not in ("best", "last"):
        raise ConfigError(f"which is 'best' or 'last', not {which!r}")
    if not run.finished:
        raise MissingWeights(f"{run.name} is not trained here: `crat train` or train(config) does it")
    return run.card()[which]["weights"]


def publish(run: Run, folder: Path | None = None) -> Path:
    """Copies what is small and lasting (card, history, trace, outcomes; no weights) to results/<data set>/<run>.

    SHA256SUMS there and at the top of results/ say what was published.
    """
    if not run.trained_here:
        raise store.StoreError(f"{run.name} is not finished here; only finished runs are published")
    target = (folder or store.results_home()) / run.config.data.name / run.name
    for source in sorted(run.folder.rglob("*")):
        place = source.relative_to(run.folder)
        hidden = any(part.startswith(".") or ".part." in part for part in place.parts)
        if source.suffix in (".json", ".csv", ".npz") and not hidden:
            with store.written_whole(target / place) as temporary:
                temporary.write_bytes(source.read_bytes())
    manifest.sign(target)
    return target
