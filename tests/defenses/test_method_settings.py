"""Settings of the methods: defaults, by which stored runs are named; the edges of what is allowed;
when each begins.

A default is left out of a run's name. Whoever changes one gives an old name to other numbers, and
must raise the method's revision: then change the table here as well.
"""

from inspect import signature

import pytest
import torch

from crat.attacks import PGD
from crat.config import ConfigError
from crat.defenses import DEFENSES, ClassStats, Task
from crat.defenses.tian2021 import fit_bias

DEFAULTS = {
    "standard": {},
    "pgd_at": {},
    "trades": {"beta": 6.0, "normalised": False, "passes": "clean adversarial"},
    "fat": {"tau": None, "omega": 0.001, "resumes": True},
    "cfa": {
        "base": "pgd_at",
        "lambda_1": None,
        "lambda_2": 0.5,
        "beta": 6.0,
        "tau": 3,
        "ccm": True,
        "ccr": True,
        "begin": None,
        "released_passes": False,
    },
    "spat": {
        "beta": 6.0,
        "m": 0.2,
        "n": 0.2,
        "form": "released",
        "squares": True,
        "overwrites": False,
    },
    "label_augmentation": {
        "delta": 0.1,
        "clean_share": 0.5,
        "adversarial": True,
        "operations": (),
        "attacked": "classes",
    },
    "label_smoothing": {"delta": 0.1, "clean_share": 0.5},
    "tian2021": {"form": "weight", "rate": 0.1, "limit": 3.0},
    "mart": {"beta": 6.0},
    "alp": {"pairing": 0.5, "joint": False},
    "he": {"base": "pgd_at", "margin": None, "beta": 6.0, "pairing": 0.5},
    "frl": {
        "remargin": True,
        "beta": 1.5,
        "bound": None,
        "rate_1": None,
        "rate_2": None,
        "limit": 0.5,
        "warmup": None,
        "released_passes": False,
    },
    "wat": {"beta": 6.0, "eta": None},
    "bat": {"beta": 6.0, "balance": 1.0, "tau": 1},
    "cfol": {"gamma": 0.5, "eta": None},
    "dafa": {
        "base": "trades",
        "lam": 1.0,
        "beta": 6.0,
        "warmup": None,
        "ties_lose": False,
        "unweighted_step": False,
    },
    "faal": {
        "base": "pgd_at",
        "radius": 0.5,
        "beta": 6.0,
        "warmup": None,
        "released_passes": False,
    },
    "codat": {"base": "pgd_at", "rho": 0.25, "beta": 6.0},
    "universal_at": {"class_wise": True},
    "robal": {
        "m": 0.1,
        "tau_m": 0.0,
        "tau_b": 1.2,
        "beta": 6.0,
        "gamma": 0.0,
        "kl_scaled": False,
        "released_attack": False,
        "released_passes": False,
    },
    "reat": {"tail_term": True},
    "at_bsl": {},
    "csr": {"beta": 6.0, "share": 0.3, "margin": 0.1, "released_passes": False},
    "fair_tat": {
        "sharpness": 2.0,
        "adaptive_eps": True,
        "lambda_r": 0.5,
        "released_passes": False,
    },
    "ham": {"classify_step": 3, "begin": None, "compacts": False},
    "absld": {
        "rate": 0.1,
        "coolest": 0.5,
        "warmest": 5.0,
        "adversarial_share": 5 / 6,
        "compounds": False,
        "per_output": False,
    },
    "fair_ard": {
        "base": "ard",
        "power": 2.0,
        "temperature": 30.0,
        "alpha": 1.0,
        "adversarial_share": 5 / 6,
        "per_output": False,
    },
    "self_distillation": {"share": 0.5, "temperature": 1.0},
    "fgsm": {"noise": 0.0, "step": 1.0, "clipped": True},
    "fgsm_rs": {"noise": 1.0, "step": 1.25, "clipped": True},
    "n_fgsm": {"noise": 2.0, "step": 1.0, "clipped": False},
    "grad_align": {"noise": 0.0, "step": 1.0, "clipped": True, "weight": 0.2},
    "fgsm_pgi": {"noise": 0.0, "step": 1.0, "clipped": True, "weight": 10.0},
    "free_at": {"replays": 8},
}
START = {
    "gaussian": "trades spat mart alp he frl wat bat dafa at_bsl csr absld self_distillation",
    "none": "universal_at fgsm grad_align fgsm_pgi free_at",
}
EVAL = (
    "trades fat spat mart alp he frl wat bat cfol dafa faal universal_at robal reat at_bsl "
    "csr ham absld self_distillation"
)
EDGES = [  # method, setting, allowed at the edges, refused beyond
    ("cfa", "begin", (1, 2), (0,)),
    ("tian2021", "rate", (0.0,), (-1e-9,)),
    ("tian2021", "limit", (1.0,), (0.999,)),
    ("alp", "pairing", (0.0, 1e9), (-1e-9, float("inf"))),
    ("he", "pairing", (0.0, 1e9), (-1e-9, float("inf"))),
    ("he", "margin", (0.0, 2.0), (-1e-9, 2.001)),
    ("frl", "warmup", (1,), (0,)),
    ("frl", "limit", (0.0, 0.999), (-1e-9, 1.0)),
    ("wat", "eta", (0.0,), (-1e-9,)),
    ("bat", "tau", (0,), (-1,)),
    ("cfol", "gamma", (1e-9, 1.0), (0.0, 1.001)),
    ("cfol", "eta", (0.0,), (-1e-9,)),
    ("dafa", "lam", (0.0,), (-1e-9,)),
    ("dafa", "warmup", (1,), (0,)),
    ("faal", "radius", (0.0, 50.0), (-1e-9, 50.1)),
    ("faal", "warmup", (0,), (-1,)),
    ("codat", "rho", (0.0,), (-1e-9,)),
    ("absld", "rate", (0.0, 1e9), (-1e-9, float("inf"))),
    ("absld", "coolest", (1e-9, 1.0), (0.0, 1.001)),
    ("absld", "warmest", (1.0, 1e9), (0.999, float("inf"))),
    ("absld", "adversarial_share", (0.0, 1.0), (-1e-9, 1.001)),
    ("fair_ard", "power", (0.0, 1e9), (-1e-9, float("inf"))),
    ("fair_ard", "temperature", (1e-9, 1e9), (0.0, float("inf"))),
    ("fair_ard", "alpha", (0.0, 1.0), (-1e-9, 1.001)),
    ("fair_ard", "adversarial_share", (0.0, 1.0), (-1e-9, 1.001)),
    ("self_distillation", "share", (0.0, 1.0), (-1e-9, 1.001)),
    ("self_distillation", "temperature", (1e-9, 1e9), (0.0,)),
    ("label_smoothing", "delta", (0.0, 0.999), (-1e-9, 1.0)),
    ("label_augmentation", "clean_share", (0.0, 0.999), (-1e-9, 1.0)),
    *(
        ("robal", name, (0.0, 1e9), (-1e-9, float("inf")))
        for name in ("m", "tau_m", "tau_b", "gamma")
    ),
    *(("csr", name, (0.0, 0.999), (-1e-9, 1.0)) for name in ("share", "margin")),
    ("fair_tat", "sharpness", (0.0, 999.0), (-1e-9, 1000.0)),
    ("fair_tat", "lambda_r", (0.0,), (-1e-9,)),
    ("ham", "classify_step", (1, 1000), (0,)),
    ("ham", "begin", (0,), (-1,)),
]


def ready(name, epochs=10, counts=(30, 20, 10), **options):
    method = DEFENSES[name]
    made = method(PGD(0.1, 0.03, 3, start=method.start, batch_norm=method.batch_norm), **options)
    made.prepare(Task(torch.tensor(counts), (1, 6, 6), epochs))
    return made


def test_defaults_stay_what_stored_runs_were_trained_with():
    assert {name: method.options() for name, method in DEFENSES.items()} == DEFAULTS
    starts = {name: start for start, names in START.items() for name in names.split()}
    assert {name: method.start for name, method in DEFENSES.items()} == dict.fromkeys(
        DEFENSES, "uniform"
    ) | starts
    modes = dict.fromkeys(DEFENSES, "train") | dict.fromkeys(EVAL.split(), "eval")
    assert {name: method.batch_norm for name, method in DEFENSES.items()} == modes
    by_clean = {name for name, method in DEFENSES.items() if method.selects_on == "clean"}
    assert by_clean == {"standard", "universal_at"}


@pytest.mark.parametrize(
    ("name", "setting", "allowed", "refused"), EDGES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_the_edges_of_a_setting(name, setting, allowed, refused):
    for value in allowed:
        assert getattr(ready(name, **{setting: value}), setting) == value
    for value in refused:
        with pytest.raises(ConfigError, match=rf"{setting}.* is .*, not {value}"):
            ready(name, **{setting: value})


@pytest.mark.parametrize(
    ("name", "place", "by_epochs"),
    [
        ("cfa", "first", {200: 10, 100: 5, 50: 2, 12: 1, 1: 1}),  # the code's 10 of 200
        ("dafa", "last", {110: 70, 55: 35, 11: 7, 1: 1}),  # the code's 70 of 110
        ("faal", "first", {100: 50, 11: 5, 1: 0}),  # half
        ("frl", "first", {100: 75, 8: 6, 2: 1, 1: 1}),  # three quarters, one epoch left at least
        ("ham", "first", {120: 49, 60: 24, 6: 2, 1: 0}),  # the code's 49 of 120
    ],
)
def test_a_policy_begins_in_proportion_to_the_epochs(name, place, by_epochs):
    assert {epochs: getattr(ready(name, epochs), place) for epochs in by_epochs} == by_epochs


def test_a_policy_begins_where_it_is_asked_to():
    asked = (("cfa", "begin", "first"), ("dafa", "warmup", "last"), ("faal", "warmup", "first"))
    assert [getattr(ready(name, 200, **{option: 7}), place) for name, option, place in asked] == [
        7,
        7,
        7,
    ]


@pytest.mark.parametrize(("epochs", "scale"), [(160, 1), (80, 2), (8, 10), (4, 10), (1, 10)])
def test_frls_rates_are_the_codes_over_forty_epochs(epochs, scale):
    """Behind the warm-up; faster over fewer, ten times at most."""
    assert ready("frl", epochs).rates == pytest.approx([0.05 * scale, 0.2 * scale])
    assert ready("frl", epochs, rate_1=0.3, rate_2=0.4).rates == [0.3, 0.4]


def test_frls_bounds_are_the_codes():
    """Classes 10 points above and 10 below the average: what exceeds 0.1, with remargin 0.07, is
    weighed.
    """
    n, nothing = torch.tensor([10.0, 10.0]), torch.zeros(2)
    valid = ClassStats(
        n,
        torch.tensor([9.0, 7.0]),
        torch.tensor([9.0, 7.0]),
        *[nothing] * 3,
        *[nothing[:, None]] * 2,
    )
    for remargin, bound in ((False, 0.1), (True, 0.07)):
        frl = ready("frl", 10, (1, 1), remargin=remargin, warmup=1, rate_1=1.0, rate_2=1.0)
        frl.epoch_end(valid, valid)
        assert frl.state["clean_multiplier"].tolist() == pytest.approx([0, 0.1 - bound], abs=1e-7)


def test_wats_and_cfols_rates_are_the_codes_at_its_length():
    """WAT: 0.1 of 100 epochs; CFOL: 5e-6 of 100 epochs of 40,000 images; both fall with the root
    of the length.
    """
    assert [ready("wat", epochs).rate for epochs in (100, 400, 25)] == pytest.approx(
        [0.1, 0.05, 0.2]
    )
    assert ready("wat", 100, eta=0.7).rate == 0.7
    for epochs, images, rate in ((100, 40_000, 5e-6), (25, 40_000, 1e-5), (100, 10_000, 1e-5)):
        assert ready("cfol", epochs, (images // 2, images // 2)).rate == pytest.approx(rate)
    assert ready("cfol", eta=0.7).rate == 0.7


def test_fats_slack_grows_at_the_codes_shares_of_the_epochs():
    """0, 1 and 2 steps from epochs 1, 51 and 91 of 120 on."""
    fat, slack = ready("fat", 12), []
    for _ in range(12):
        slack.append(int(fat.slack()))
        fat.epoch_end(None, None)
    assert slack == [0] * 5 + [1] * 4 + [2] * 3
    assert ready("fat", tau=3).slack() == 3


def test_cfas_lambdas_are_the_papers_for_each_base():
    """t_k = .2 and .6 at eps .1, beta 6: lambda_1 of .5, .3 and .7, lambda_2 of .5; each part
    can be left out.
    """
    n, nothing = torch.tensor([10.0, 10.0, 0.0]), torch.zeros(3)
    train = ClassStats(
        n, nothing, torch.tensor([2.0, 6.0, 0]), *[nothing] * 3, *[nothing[:, None]] * 2
    )
    for base, lambda_1 in (("pgd_at", 0.5), ("trades", 0.3), ("fat", 0.7)):
        cfa = ready("cfa", 10, base=base)
        cfa.epoch_end(train, None)
        assert cfa.state["eps"].tolist() == pytest.approx(
            [0.1 * (lambda_1 + 0.2), 0.1 * (lambda_1 + 0.6), 0.1]
        )
        if base == "trades":
            assert cfa.state["beta"].tolist() == pytest.approx([6 * 0.7, 6 * 1.1, 6])
    for part, other in (("ccm", "beta"), ("ccr", "eps")):
        cfa = ready("cfa", 10, base="trades", lambda_1=0.1, lambda_2=0.2, **{part: False})
        cfa.epoch_end(train, None)
        left, moved = {"ccm": ("eps", 0.1), "ccr": ("beta", 6.0)}[part], cfa.state[other]
        assert cfa.state[left[0]].tolist() == pytest.approx([left[1]] * 3)
        assert moved.tolist() == pytest.approx(
            [2.4, 4.8, 6.0] if other == "beta" else [0.03, 0.07, 0.1]
        )
    late = ready("cfa", 200)
    for epoch in range(1, 12):
        late.epoch_end(train, None)
        assert (late.state["eps"][0].item() == pytest.approx(0.07)) == (epoch >= 10)


def test_a_bias_is_fitted_with_the_settings_that_published_ones_were():
    """Notebooks fit theirs without naming any; the first round, by hand: step sd(z) / sqrt(1)
    for the worst of two.
    """
    settings = {
        name: p.default
        for name, p in signature(fit_bias).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    assert settings == {"rounds": 500, "step": 0.03, "max_drop": None}
    z, y = torch.tensor([[1.0, 0.0], [0.01, 0.0], [0.01, 0.0]]), torch.tensor([0, 1, 1])
    moved = 0.03 * z.std()  # enough for the second class, which loses by 0.01
    torch.testing.assert_close(fit_bias(z, y, rounds=1), torch.stack([-moved / 2, moved / 2]))
