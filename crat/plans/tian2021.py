"""Runs of notebook 01 (Tian et al. 2021), on any of its data sets."""

from __future__ import annotations

from crat.config import ConfigError, RunConfig, profile
from crat.data.registry import DATASETS
from crat.defenses import preset
from crat.names import one_of
from crat.plans.common import EMA, SEEDS, Runs, evidence, shown_live, sweep

METHODS = ("standard", "pgd_at", "trades")
# Class removal: the top confuser of each of the two hardest classes, and a dissimilar class as
# control. A plan must know them before anything is trained. Fashion-MNIST's were chosen on
# validation images; the others are what is known of these images, and the notebook leaves out those
# that its own validation images do not choose.
REMOVED = {name: spec.removed_classes for name, spec in DATASETS.items() if spec.removed_classes}
LIFTS = ("weight",)  # forms of the lift of the most vulnerable class in training, which is ours


def tian2021(profile_name: str, seed: int = 0, data: str = "") -> Runs:
    """Notebook 01: one live run of the profile, then the evidence. data: another data set for all
    of them.

    The quick profile decides nothing, so its figures are drawn from the laptop profile's published
    runs; on a data set that has none, from runs at its own settings.
    """
    live = {
        "live": on(shown_live(profile_name), profile_name, data).but(defense="pgd_at", seed=seed)
    }
    published = profile(evidence(profile_name)).data.name
    return live | tian2021_evidence(
        evidence(profile_name) if data in ("", published) else profile_name, data
    )


def tian2021_evidence(profile_name: str, data: str = "") -> Runs:
    """Keys "pgd_at-s0" ..., "without-3-s0": AT on all classes but number 3; of the sweeps
    "AT-s0", "lift weight-s0".
    """
    base = on(profile(profile_name), profile_name, data)
    runs = {f"{m}-s{s}": base.but(defense=m, seed=s) for m in METHODS for s in SEEDS}
    runs |= {
        f"without-{c}-s0": base.but(defense="pgd_at", drop_classes=(c,)) for c in removed(base)
    }
    return runs | lifts(profile_name, data)


def lifts(profile_name: str, data: str = "") -> Runs:
    """AT+EMA of the sweeps and the same with a factor that grows for the weakest class."""
    default = data in ("", profile(profile_name).data.name)
    base = on(sweep(profile_name), profile_name, "" if default else data)
    runs = {f"AT-s{s}": base.but(**preset("pgd_at")).but(seed=s) for s in SEEDS}
    return runs | {
        f"lift {form}-s{s}": base.but(**preset("tian2021", form=form) | EMA).but(seed=s)
        for form in LIFTS
        for s in SEEDS
    }


def on(base: RunConfig, profile_name: str, data: str) -> RunConfig:
    """The run on another data set ("": its own): that one's protocol, and no more images of a class
    than it has.

    Raises ConfigError on an unknown name, and on ImageNet, which is not trained here.
    """
    own, data = base.data.name, one_of("data set", data, DATASETS) if data else base.data.name
    if data == own == "fashion_mnist_mini":
        return base
    if data == "imagenet":
        raise ConfigError(
            "imagenet is not trained here: `crat audit module:function --data imagenet` judges a "
            "model"
        )
    smallest = DATASETS[data].smallest_class
    valid = min(base.data.valid_per_class, smallest // 5)
    wanted, left = base.data.train_per_class, smallest - valid
    # a subset: as many of the other data set, not all it has
    if wanted is None and own == "fashion_mnist_mini":
        wanted = DATASETS[own].smallest_class - base.data.valid_per_class
    images = {
        "train_per_class": None if wanted is None else min(wanted, left),
        "valid_per_class": valid,
    }
    own_settings = DATASETS[data].paper_settings if profile_name == "paper" else {}
    return base.but(data=data, **images, **own_settings)


def removed(config: RunConfig) -> tuple[int, ...]:
    """The classes that are left out in turn, of a run's data set; none where no pair is
    declared.
    """
    return DATASETS[config.data.name].removed_classes
