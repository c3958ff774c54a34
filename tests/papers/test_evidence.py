"""Evidence by hand-made outcomes: what it counts, compares, decides and refuses."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import TINY

from crat.analysis import metrics
from crat.analysis.claims import Claim
from crat.analysis.comparisons import compare, contrast
from crat.attacks import PGD
from crat.config import ConfigError, Selection
from crat.outcomes.cache import Outcomes
from crat.papers import PAPERS, PLANS
from crat.papers.cfa import CLAIMS
from crat.papers.evidence import Evidence, mean_sd
from crat.training import MissingStart
from crat.training.run import fine_tuned

CLASSES = ("one", "two", "three")
Y = np.repeat([0, 1, 2], 20)


def answers(seed, right):
    """Outcomes of a network: right on a share of clean images, on fewer under each attack."""
    rng = np.random.default_rng(seed)
    clean = np.where(rng.random(Y.size) < right, Y, (Y + 1) % 3)
    attacked = {
        name: np.where(rng.random(Y.size) < share, clean, (Y + 2) % 3)
        for name, share in (("PGD-20", 0.7), ("CW-20", 0.8))
    }
    return Outcomes("test", CLASSES, Y, {}, {"clean": clean, **attacked}, {})


@pytest.fixture
def test():
    """Three methods of notebook 04, and a run of its sweeps that has the name of no method."""
    seen = {
        f"main {m}-s{s}": answers(s, 0.9) for m in ("AT", "CFA (AT)", "TRADES") for s in (0, 1, 2)
    }
    return replace(
        Evidence.of("04", "quick"),
        seen=seen | {"beta 6": answers(7, 0.8), "AT-s0": answers(8, 0.7)},
    )


def test_each_paper_is_asked_by_its_number_and_parameters():
    # 00 has the live run's relatives only; 01 and 09 attack networks of later seeds anew
    repeated = {"00": (3,), "04": tuple(range(8)), "07": tuple(range(8))}
    repeated |= dict.fromkeys(("01", "09"), tuple(range(6)))
    for number in PAPERS:
        evidence = Evidence.of(number, "quick", seed=3)
        assert evidence.asked == PLANS[number]("quick", 3)
        assert evidence.seeds == repeated.get(number, (0, 1, 2))
    chosen = Evidence.of("04", "laptop", data="mnist", seeds="0 4")
    assert {config.data.name for config in chosen.asked.values()} == {"mnist"}
    assert {"main AT-s4", "main AT-s0"} == {
        key for key in chosen.asked if key.startswith("main AT-s")
    }
    with pytest.raises(ConfigError, match="unknown notebook '4'"):
        Evidence.of("4", "quick")
    with pytest.raises(ConfigError, match="seeds are numbers"):
        Evidence.of("04", "quick", seeds="0, 1")


@pytest.mark.parametrize(
    ("number", "main"),
    [
        ("03", "fashion_mnist"),
        ("05", "fashion_mnist"),
        ("07", "fashion_mnist_mini"),
        ("08", "fashion_mnist_mini"),
    ],
)
def test_the_data_set_is_that_of_the_main_runs(number, main):
    evidence = Evidence.of(number, "quick")
    assert evidence.dataset == main
    assert list(evidence.battery) == ["PGD-20", "CW-20"]
    assert main in evidence.setting
    # the published verdicts lie under the data set's name
    assert evidence._published.is_file()


def test_recomputed_runs_have_nothing_published():
    key = "main AT-s0"
    assert Evidence.of("04", "quick").run(key).published
    anew = Evidence.of("04", "quick", recompute=True).run(key)
    assert anew.published is None
    assert anew.folder.parent.name == "recomputed"


def test_a_method_is_its_runs_and_a_run_is_itself(test):
    assert test.methods == ["main AT", "main CFA (AT)", "main TRADES", "beta 6", "AT"]
    assert test.keys("main AT") == ["main AT-s0", "main AT-s1", "main AT-s2"]
    assert test.keys("main AT-s1") == ["main AT-s1"]
    assert test.keys("AT") == ["AT-s0"]
    assert test.keys("beta 6") == ["beta 6"]
    with pytest.raises(
        ConfigError, match=r"unknown judged method 'main CFA'; known: main AT, .*did you mean"
    ):
        test.runs("main CFA")
    with pytest.raises(ConfigError, match="unknown run 'main AT-s9'"):
        test.run("main AT-s9")


def test_right_is_right_when_clean_and_under_all_attacks(test):
    first = test.seen["main AT-s0"]
    assert test.runs("main AT").shape == (3, Y.size)
    assert (test.runs("main AT")[0] == first.robust("PGD-20")).all()
    union = test.runs("main AT", "PGD-20", "CW-20")[0]
    assert (union == (first.robust("PGD-20") & first.robust("CW-20"))).all()
    assert (test.runs("main AT", "clean")[0] == (first.clean == Y)).all()
    worst = [min(run[k == Y].mean() for k in range(3)) for run in test.runs("main AT")]
    assert test.each("main AT", "worst") == pytest.approx(worst)
    assert test.class_accuracy("main AT", "CW-20") == pytest.approx(
        [test.runs("main AT", "CW-20")[:, k == Y].mean() for k in range(3)]
    )
    table = test.class_table(["main AT", "beta 6"])
    assert table["class"].tolist() == [*CLASSES, *CLASSES]
    assert table.robust_acc[3:].tolist() == pytest.approx(test.class_accuracy("beta 6"))
    counts = test.confusions("main AT", "PGD-20")
    assert counts.shape == (3, 3, 3)
    assert (
        counts[1] == metrics.confusion(Y, test.seen["main AT-s1"].predictions["PGD-20"], 3)
    ).all()


def test_a_cell_is_mean_and_deviation_in_percent(test):
    assert mean_sd([0.5, 0.7, 0.6]) == "60.0 ± 10.0"
    assert mean_sd([0.123]) == "12.3"
    assert test.cell("main AT", "average", "clean") == mean_sd(
        test.each("main AT", "average", "clean")
    )


def test_a_comparison_pools_the_judged_methods_of_a_stratum(test):
    a, b, third = (test.runs(f"main {m}") for m in ("CFA (AT)", "AT", "TRADES"))
    found = test.compare("main CFA (AT)", "main AT")
    assert found == compare(Y, a, b, like_a=[third])
    some = Y > 0
    assert test.compare("main CFA (AT)", "main AT", only=some) == compare(
        Y[some], a[:, some], b[:, some], like_a=[third[:, some]]
    )
    assert test.compare("beta 6", "AT", "gap", "clean").kind == "checkpoints"


def test_several_methods_are_compared_by_their_mean(test):
    at, cfa, trades = (test.runs(f"main {m}") for m in ("AT", "CFA (AT)", "TRADES"))
    found = test.compare(["main AT", "main CFA (AT)"], ["main TRADES"], "worst")
    assert found == compare(Y, [at, cfa], [trades], "worst")
    assert found.seeds == 3
    alone = test.compare(["main AT"], "main CFA (AT)")
    assert alone == test.compare("main AT", "main CFA (AT)")
    two = {key: o for key, o in test.seen.items() if key != "main CFA (AT)-s2"}
    of_two = replace(test, seen=two).compare(["main AT", "main CFA (AT)"], "main TRADES")
    assert of_two == compare(Y, [at[:2], cfa[:2]], [trades])


def test_an_averaged_method_is_of_another_stratum(test):
    averaged = {
        key: config.but(average="ema_update") if key.startswith("main AT-s") else config
        for key, config in test.asked.items()
    }
    a, b, third = (test.runs(f"main {m}") for m in ("CFA (AT)", "AT", "TRADES"))
    found = replace(test, asked=averaged).compare("main CFA (AT)", "main AT", "worst")
    assert found == compare(Y, a, b, "worst", like_a=[third], like_b=[])


def biased(test):
    """Answers of the networks of "main AT" under a bias: others, of the same stratum."""
    for s in (0, 1, 2):
        test.add(f"AT + bias-s{s}", answers(10 + s, 0.9), network=f"main AT-s{s}")
    return test


def test_added_answers_are_of_the_stratum_of_their_network(test):
    biased(test)
    a, b, third = (test.runs(name) for name in ("AT + bias", "main CFA (AT)", "main TRADES"))
    # the bias of a network and the network itself are not two networks
    assert test.compare("AT + bias", "main CFA (AT)") == compare(Y, a, b, like_a=[third])
    averaged = {
        key: config.but(average="ema_update") if key.startswith("main AT-s") else config
        for key, config in test.asked.items()
    }
    found = replace(test, asked=averaged).compare("AT + bias", "main CFA (AT)", "worst")
    assert found == compare(Y, a, b, "worst", like_a=[], like_b=[third])


def test_added_answers_lend_no_variance(test):
    before = test.compare("main CFA (AT)", "main TRADES"), test.contrast("main TRADES", "gap")
    biased(test)
    after = test.compare("main CFA (AT)", "main TRADES"), test.contrast("main TRADES", "gap")
    assert before == after
    assert test.methods[-1] == "AT + bias"
    # another view of the same runs knows whose they are
    assert test.judge({}, ()).added == test.added


def test_answers_are_added_under_a_new_key_and_of_a_run_that_was_asked_for(test):
    with pytest.raises(ConfigError, match="unknown run 'main AT-s9'"):
        test.add("AT + bias-s9", answers(0, 0.9), network="main AT-s9")
    with pytest.raises(ConfigError, match=r"'main AT-s0' is a run of notebook 04"):
        test.add("main AT-s0", answers(0, 0.9), network="main AT-s1")
    assert not test.added


def test_a_contrast_is_of_the_same_networks_and_pools_their_siblings(test):
    pgd = next(iter(test.battery))
    clean, attacked = (
        [test.runs(f"main {m}", under) for m in ("AT", "CFA (AT)", "TRADES")]
        for under in ("clean", pgd)
    )
    siblings = list(zip(clean[1:], attacked[1:], strict=True))
    assert test.contrast("main AT", "gap") == contrast(
        Y, clean[0], attacked[0], "gap", siblings=siblings
    )


def test_a_contrast_borrows_only_from_what_both_attacks_judged(test):
    pgd, cw = test.battery
    for s in (0, 1, 2):
        del test.seen[f"main TRADES-s{s}"].predictions[cw]
    at, cfa = ([test.runs(f"main {m}", under) for under in (cw, pgd)] for m in ("AT", "CFA (AT)"))
    assert test.contrast("main AT", "average", cw) == contrast(Y, *at, siblings=[cfa])


def test_verdicts_are_settled_written_and_compared_with_the_published(test, tmp_path):
    gain = test.compare("main CFA (AT)", "main AT", "worst")
    test.decide("at worst", gain)
    own = Claim("ours", "here", "a claim that the notebook makes", "average", family="04")
    test.decide(own, None)
    assert test.decided[1].verdict == "not run"
    # one list for all views
    assert [v.claim for v in test.judge({}, ()).decided] == [CLAIMS["at worst"], own]
    text = test.settle(tmp_path)
    heads = len({claim.role for claim in CLAIMS.values()})  # a table for each role
    rows = text.count("\n| ") - heads
    assert rows == len(CLAIMS) + 1  # those that nobody decided were not run
    assert text.count("| not run |") == len(CLAIMS)
    assert "a claim that the notebook makes" in text
    # the primary claims first, each role in the paper's order, the notebook's own last
    roles = [v.claim.role for v in test.decided]
    assert roles == sorted(roles, key=["primary", "exploratory"].index)
    primary = [claim for claim in CLAIMS.values() if claim.role == "primary"]
    assert [v.claim for v in test.decided if v.claim.role == "primary"] == [*primary, own]
    with pytest.raises(AssertionError):  # two claims are not the published table
        test.recheck(tmp_path)
    # one run is not the published one: nothing to compare with
    other = replace(test, asked=test.asked | {"new": TINY})
    assert "not run" in other.recheck(tmp_path)
    # fewer seeds, all of them published: their verdicts may be others
    fewer = replace(test, selection=Selection(seeds=(0, 1)))
    assert "not run" in fewer.recheck(tmp_path)
    with pytest.raises(KeyError):
        test.decide("at best", gain)


def test_published_runs_are_judged_without_a_network():
    evidence = Evidence.of("04", "quick")
    keys = ["main AT-s0", "main CFA (AT)-s0"]
    test = evidence.judge(evidence.battery, keys)
    assert list(test.seen) == keys
    assert not evidence.seen
    assert test.runs("main AT").shape == (1, 10_000)
    epochs = test.by_epoch("main AT-s0")
    assert epochs.shape == (12, 10)
    assert set(epochs.columns) == set(test.classes)
    assert set(test.history("main AT-s0", "train").split) == {"train"}


def test_what_is_missing_is_trained_and_each_run_may_have_its_battery(own_store, monkeypatch):
    monkeypatch.setattr(
        PAPERS["00"], "plan", lambda *_: {"live": TINY, "other-s0": TINY.but(seed=1)}
    )
    evidence = Evidence.of("00", "quick")
    batteries = {"other-s0": {"PGD-1": PGD(0.1, 0.1, 1)}}
    test = evidence.judge(batteries.__getitem__, progress="none", first=100)
    assert test.seen["other-s0"].predictions.keys() == {"clean", "PGD-1"}
    assert test.runs("other", "PGD-1").shape == (1, 100)
    assert evidence.train(progress="none").trained_here
    assert evidence.live == TINY
    held = evidence.bias("other-s0", 0.02)
    assert len(held) == 10
    assert held == [round(b, 2) for b in held]


def test_a_run_that_starts_from_another_of_the_plan_is_trained_after_it(own_store, monkeypatch):
    base = TINY.but(defense="standard", epochs=1)
    plan = {
        "live": fine_tuned(TINY.but(epochs=1, seed=2), fine_tuned(TINY.but(epochs=1), base)),
        "tuned-s0": fine_tuned(TINY.but(epochs=1), base),
        "base-s0": base,
        "lost-s0": TINY.but(start_from="lost"),
    }
    monkeypatch.setattr(PAPERS["00"], "plan", lambda *_: plan)
    evidence = Evidence.of("00", "quick")
    battery = {"PGD-1": PGD(0.1, 0.1, 1)}
    evidence.outcomes("tuned-s0", battery, progress="none", first=10)
    assert evidence.run("base-s0").trained_here
    live = evidence.train(progress="none")
    assert live.card()["start_from"]["run"] == evidence.run("tuned-s0").name
    for work in (evidence.train, lambda key: evidence.outcomes(key, battery, progress="none")):
        with pytest.raises(MissingStart, match="the weights of lost are not in"):
            work("lost-s0")


def test_the_h100s_runs_are_read_from_any_notebook_and_share_no_verdict():
    evidence = Evidence.of("04", "quick", recompute=True)
    gpu = evidence.h100()
    assert (gpu.dataset, gpu.methods) == ("cifar10", ["CIFAR-10, AT+EMA", "CIFAR-10, CFA (AT)+EMA"])
    assert gpu.runs("CIFAR-10, AT+EMA", "PGD-20", "CW-20").shape == (1, 10_000)
    gpu.decide("at worst", None)
    assert not evidence.decided
