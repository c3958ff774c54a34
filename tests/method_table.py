"""All training methods, and those of their options that change what they compute: a test's rows."""

import pytest
from tiny_runs import TINY
from tiny_teacher import taught

from crat.defenses import DEFENSES, preset

CHOICES = {
    "cfa-trades": {"base": "trades"},
    "cfa-fat": {"base": "fat"},
    "he-trades": {"base": "trades"},
    "he-alp": {"base": "alp"},
    "dafa-at": {"base": "pgd_at"},
    "faal-trades": {"base": "trades"},
    "frl-reweight": {"remargin": False},
    "tian2021-temperature": {"form": "temperature"},
    "spat-circle": {"form": "circle"},
    "label_augmentation-la": {"adversarial": False},
    "universal_at-one": {"class_wise": False},
    "fair_ard-rslad": {"base": "rslad"},
    "label_smoothing-at": {"clean_share": 0.0},
}
METHODS = {name: (name, {}) for name in DEFENSES} | {
    key: (key.split("-")[0], o) for key, o in CHOICES.items()
}
each_method = pytest.mark.parametrize("method", METHODS)


def config(method, **changes):
    """The tiny run of a row; its teacher, where it has one, is kept in the present store."""
    name, options = METHODS[method]
    return taught(TINY.but(**preset(name, **options)).but(eps_warmup=0).but(**changes))
