"""The papers' plans by selection, and every claim given known effects.

Each verdict must be reachable, and noise must not decide. A claim's functional says how it is
decided: one of `metrics.per_run` by `claims.compare`, "share" by `claims.share`, "rank correlation"
by `claims.rank_correlation`.
"""

from collections import Counter

import numpy as np
import pytest

from crat.analysis import claims
from crat.analysis.metrics import per_run
from crat.batch.estimates import images
from crat.config import PROFILES, ConfigError, Selection, profile
from crat.papers import LIVE, PAPERS, PLANS, all_claims, common
from crat.papers.all_methods import TWO_EPOCHS, evidence_runs
from crat.papers.label_augmentation import FINE_TUNING
from crat.training.run import Run

CLAIMS = all_claims()
COMPARED = ("average", "worst", "crossfit", "tail", "spread", "gap")
K, PER_CLASS, SEEDS = 10, 400, 3
Y = np.repeat(np.arange(K), PER_CLASS)
ORDER = np.linspace(0.3, 0.9, K)  # class accuracies

each_claim = pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)


def runs(class_acc, seed, noise=0.0, shared=None):
    """Bool (SEEDS, images) of these class accuracies; `shared` uniforms pair two sets by image."""
    rng = np.random.default_rng(seed)
    u = rng.random(Y.size) if shared is None else shared
    moved = class_acc + noise * (rng.standard_normal((SEEDS, 1)) + rng.standard_normal((SEEDS, K)))
    return u < moved[:, Y]


def changed(functional, by):
    """Class accuracies whose functional lies `by` above ORDER's."""
    if functional in ("spread", "gap"):
        centred = ORDER - ORDER.mean()
        size = centred.std() if functional == "spread" else np.ptp(centred)
        return ORDER.mean() + centred * (size + by) / size
    return ORDER + by


def two_methods(claim, by, noise, seed=0):
    rng = np.random.default_rng(seed)
    u = rng.random(Y.size)
    a, b = changed(claim.functional, by / 2), changed(claim.functional, -by / 2)
    return runs(a, seed + 1, noise, u), runs(b, seed + 2, noise, u)


def compared(claim, by, noise, seed=0):
    a, b = two_methods(claim, by, noise, seed)
    return claims.compare(Y, a, b, claim.functional, draws=400)


def shared_out(claim, by, noise):
    """A share counted on each run: without noise on 4,000 images, with noise on 40."""
    n = 40 if noise else 4000
    return claims.share(np.full(SEEDS, round(n * (0.5 + by))), np.full(SEEDS, n), 0.5)


def correlated(claim, by, noise):
    """An order against itself, its reverse or an unrelated one, without noise on many images."""
    # rho = -0.006
    orders = {1: ORDER, -1: ORDER[::-1], 0: np.array([8, 2, 5, 1, 9, 0, 4, 7, 3, 6.0])}
    y = np.repeat(np.arange(K), 5 if noise else 4000)
    right = np.random.default_rng(1).random((SEEDS, y.size)) < ORDER[y]
    return claims.rank_correlation(y, right, orders[int(np.sign(by))], draws=400)


def estimate(claim, by, noise=0.0):
    if claim.functional in COMPARED:
        return compared(claim, by, noise)
    return {"share": shared_out, "rank correlation": correlated}[claim.functional](claim, by, noise)


@pytest.mark.parametrize("number", PLANS)
def test_a_plan_heeds_its_selection(number):
    """A selection changes every data set, and the seeds of repeated runs; the default nothing."""
    plan = PLANS[number]
    for name in PROFILES:
        assert plan(name, 3) == plan(name, 3, Selection())
        moved = plan(name, 3, Selection("svhn", (0, 5)))
        assert {config.data.name for config in moved.values()} == {"svhn"}
        assert {config.train.seed for config in moved.values()} <= {0, 3, 5}
    assert set(LIVE.get(number, ())) <= plan("quick").keys()


@pytest.mark.parametrize("number", PLANS)
def test_a_plan_has_the_runs_that_others_start_from(number):
    for name in PROFILES:
        runs = PLANS[number](name).values()
        starts = {name for config in runs for name in config.train.earlier}
        assert not starts or starts <= {Run.of(config).name for config in runs}


def test_all_that_learn_from_a_teacher_have_the_baselines_first_run():
    runs = evidence_runs("laptop", Selection(seeds=(0, 5)))
    taught = {key: run.train.teacher for key, run in runs.items() if run.train.teacher}
    assert set(taught) == {f"{m}+EMA-s{s}" for m in ("ABSLD", "Fair-ARD") for s in (0, 5)}
    assert set(taught.values()) == {Run.of(runs["AT+EMA-s0"]).name}


def test_one_seed_is_too_few_for_the_hazard_and_the_class_removal():
    with pytest.raises(ConfigError, match="01 needs two seeds or more, such as 0 1"):
        PLANS["01"]("laptop", 0, Selection(seeds=(0,)))


def test_the_gpu_profile_trains_every_plan_on_cifar10():
    """30 epochs of one cycle, sweeps 15, all in bfloat16 and on CFA's split; each can be named."""
    base = profile("gpu")
    for number, plan in PLANS.items():
        for key, config in plan("gpu").items():
            if key == "live" and number in ("09", "10"):  # small in every profile
                continue
            run = Run.of(config, "cpu")
            epochs, schedule = (30, common.HALF), "one_cycle"
            for fine_tuned, settings in (("tuned", FINE_TUNING), ("two epochs", TWO_EPOCHS)):
                if fine_tuned in key:
                    epochs, schedule = (settings["epochs"],), settings["schedule"]
            assert run.config.train.epochs in epochs, (number, key)
            assert run.config.train.schedule == schedule
            assert run.config.train.dtype == "bfloat16"
            if key.startswith("mnist: "):  # beside it, with its own network
                assert (run.config.data.name, run.config.model.name) == ("mnist", "mnist_small_cnn")
                continue
            assert run.config.model.name == base.model.name
            assert (run.config.data.name, run.config.data.split) == ("cifar10", "first")
            assert run.config.train.batch_size == (64 if number == "08" else 128)
    assert common.base_of("gpu") == base
    paper = profile("paper")
    assert base.but(epochs=200, schedule="piecewise", dtype="auto") == paper


def test_the_gpu_profile_takes_a_data_sets_network_and_rate_but_its_own_epochs():
    mnist = PLANS["01"]("gpu", 0, Selection("mnist"))["pgd_at-s0"]
    assert (mnist.model.name, mnist.train.lr) == ("mnist_small_cnn", 0.01)
    assert mnist.train.epochs == 30
    assert PLANS["01"]("paper", 0, Selection("mnist"))["pgd_at-s0"].train.epochs == 100


@pytest.mark.parametrize("name", PROFILES)
def test_the_control_of_the_long_tail_has_as_many_images_in_all(name):
    runs = PLANS["08"](name)
    tail, even = (images(runs[key]) for key in ("AT-s0", "balanced AT-s0"))
    assert abs(even - tail) <= 5  # half an image of each of ten classes
    assert runs["balanced AT-s0"].data.imbalance_ratio == 1
    assert runs["AT-s0"].data.imbalance_ratio == 50


def test_the_verdicts_of_two_profiles_on_one_data_set_stay_apart():
    names = {name: common.claims_file("04", name) for name in PROFILES}
    assert names["gpu"] == "claims_04_gpu.json"
    assert {names[name] for name in PROFILES if name != "gpu"} == {"claims_04.json"}


def test_each_paper_is_a_module_of_its_own_and_claims_its_number():
    assert len({paper.__name__ for paper in PAPERS.values()}) == len(PAPERS)
    for number, paper in PAPERS.items():
        assert paper.__doc__
        families = {claim.family for claim in getattr(paper, "CLAIMS", {}).values()}
        assert families <= {number}


def test_the_published_runs_are_those_of_the_plans():
    """A change of a name would leave all published results behind."""
    shown = {key: PLANS[key]("quick") for key in ("01", "04", "06", "08")}
    lost = [
        f"{number}: {key}"
        for number, runs in shown.items()
        for key, config in runs.items()
        if key != "live" and not Run.of(config).published
    ]
    assert not lost


@each_claim
def test_a_large_effect_decides_in_the_direction_it_has(claim):
    sign = 1 if claim.direction == "greater" else -1
    large = 0.2
    assert claims.decide(claim, estimate(claim, sign * large)).verdict == "supported"
    assert claims.decide(claim, estimate(claim, -sign * large)).verdict == "reversed"


@each_claim
def test_nothing_is_no_effect_and_noise_is_undecided(claim):
    if claim.functional in COMPARED:
        same = runs(ORDER, 1, 0.0, np.random.default_rng(0).random(Y.size))
        quiet = claims.compare(Y, same, same, claim.functional, draws=400)
    elif claim.functional == "rank correlation":
        quiet = correlated(claim, 0, 0.0)
    else:
        quiet = claims.share(np.full(SEEDS, 500_000), np.full(SEEDS, 1_000_000), 0.5)
    assert claims.decide(claim, quiet).verdict == "no effect"
    assert claims.decide(claim, estimate(claim, 0, noise=0.1)).verdict == "undecided"


@each_claim
def test_one_seed_and_none_decide_nothing(claim):
    assert claims.decide(claim, None).verdict == "not run"
    if claim.functional in COMPARED:
        a, b = two_methods(claim, 0.2, 0.0)
        assert (
            claims.decide(
                claim, claims.compare(Y, a[:1], b[:1], claim.functional, draws=100)
            ).verdict
            == "undecided"
        )


@pytest.mark.parametrize(
    "functional", sorted({c.functional for c in CLAIMS.values()} & set(COMPARED))
)
def test_runs_that_differ_in_seed_only_are_seldom_decided(functional):
    claim = next(c for c in CLAIMS.values() if c.functional == functional)
    decided = 0
    for seed in range(60):
        a, b = two_methods(claim, 0.0, 0.02, 10 * seed)
        found = claims.decide(claim, claims.compare(Y, a, b, functional, draws=100))
        decided += found.verdict in ("supported", "reversed")
    assert decided <= 8  # 5 % of 60 are 3; more than 8 has a chance below one in a hundred


def test_the_planted_difference_is_the_one_that_is_read():
    for functional in COMPARED:
        a, b = (
            runs(changed(functional, by), 0, 0.0, np.random.default_rng(0).random(Y.size))
            for by in (0.05, -0.05)
        )
        assert (per_run(Y, a, functional) - per_run(Y, b, functional)).mean() == pytest.approx(
            0.1, abs=0.05
        )


def test_the_smallest_differences_that_matter_stay_what_was_declared():
    """Declared before a number was seen; two values where notebooks differ."""
    declared = {}
    for claim in CLAIMS.values():
        declared.setdefault(claim.functional, set()).add(claim.smallest_difference)
    assert declared == {
        "average": {0.01},
        "worst": {0.02},
        "spread": {0.005},
        "gap": {0.02, 0.05},
        "share": {0.02, 0.05, 0.1},
        "rank correlation": {0.05, 0.1, 0.3},
    }


def test_claims_name_their_source():
    assert all(claim.where and claim.paper for claim in CLAIMS.values())


def test_a_question_is_asked_once_in_the_whole_house():
    asked = Counter((claim.statement, claim.dataset) for claim in CLAIMS.values())
    assert not [question for question, times in asked.items() if times > 1]


def test_a_papers_primary_claims_are_all_in_one_notebook():
    """A notebook corrects its own claims, so that a paper must not be spread over two."""
    families = {}
    for claim in CLAIMS.values():
        if claim.role == "primary":
            families.setdefault(claim.paper, set()).add(claim.family)
    assert all(len(notebooks) == 1 for notebooks in families.values()), families


def test_a_claim_that_no_paper_makes_is_exploratory():
    ours = [claim for claim in CLAIMS.values() if "ours" in claim.where or "crat" in claim.paper]
    assert ours
    assert {claim.role for claim in ours} == {"exploratory"}
