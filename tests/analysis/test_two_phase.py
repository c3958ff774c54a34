"""Class-wise estimates from a sample: unbiased, with intervals that cover, and honest of breaks."""

import numpy as np
import pytest
from scipy import stats

from crat.analysis import two_phase
from crat.analysis.metrics import MetricError, wilson, worst_interval
from crat.analysis.two_phase import Counts, Design, choose, class_estimates, counts, totals


def survivors(n=4000, n_classes=5, seed=0):
    """Labels, survivors of phase one and their margins; class k survives more often for larger k.

    (n,) each.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    survived = rng.random(n) < 0.4 + 0.1 * y
    return y, survived, rng.exponential(size=n)


def estimated(y, survived, margin, withstood, design=None):
    """The class table where `withstood` (n,) says whom AutoAttack would break."""
    sample = choose(y, survived, margin, design)
    return class_estimates(counts(y, survived, sample, withstood[sample.places]))


def tally(**columns):
    """Counts of classes as given, (K,) each."""
    return Counts(**{name: np.array(values) for name, values in columns.items()})


def test_the_smallest_margins_are_taken_whole_and_every_class_gives_its_share():
    y, survived, margin = survivors()
    sample = choose(y, survived, margin, Design(hard=0.05, random=0.05, least=10, seed=3))
    assert (np.diff(sample.places) > 0).all()
    assert survived[sample.places].all()
    hard = sample.places[sample.hard]
    assert len(hard) == np.ceil(0.05 * survived.sum())
    assert (
        margin[hard].max()
        < np.delete(margin[survived], np.isin(np.flatnonzero(survived), hard)).min()
    )
    rest = survived.copy()
    rest[hard] = False
    drawn = np.bincount(y[sample.places[~sample.hard]])
    members = np.bincount(y[rest])
    assert (drawn == np.maximum(10, np.ceil(0.05 * members))).all()


def test_a_seed_is_a_draw_and_a_class_is_drawn_for_itself():
    y, survived, margin = survivors()
    first, again, other = (
        choose(y, survived, margin, Design(hard=0, seed=seed)).places for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert not np.array_equal(first, other)
    fewer = survived & (y != 2)
    without = choose(y, fewer, margin, Design(hard=0, seed=1)).places
    assert (first[y[first] != 2] == without).all()


def test_small_classes_are_taken_whole_and_then_the_estimate_is_the_truth():
    y, survived, margin = survivors(100)
    withstood = np.random.default_rng(1).random(100) < 0.8
    table = estimated(y, survived, margin, withstood, Design(least=100))
    right = np.bincount(y, survived & withstood)
    np.testing.assert_allclose(table.robust_acc, right / 20, rtol=1e-12)
    low, high = wilson(right, 20)
    np.testing.assert_allclose(table.low, low, atol=1e-12)
    np.testing.assert_allclose(table.high, high, atol=1e-12)
    np.testing.assert_allclose(table.se, np.sqrt(right / 20 * (1 - right / 20) / 20), rtol=1e-12)
    assert (table.attacked == np.bincount(y, survived)).all()


def test_the_estimate_by_hand():
    one = tally(n=[100], hard=[8], robust=[5], rest=[60], drawn=[15], broken=[3])
    (row,) = class_estimates(one, ["cat"]).itertuples()
    assert row.robust_acc == pytest.approx((5 + 60 * 12 / 15) / 100)
    low, high = wilson(53, 100)
    fewest, most = (stats.beta.ppf(q, 3.5, 12.5) for q in (0.025, 0.975))
    scale = 0.6 * np.sqrt(1 - 15 / 60)
    assert row.low == pytest.approx(0.53 - np.hypot(0.53 - low, scale * (most - 0.2)))
    assert row.high == pytest.approx(0.53 + np.hypot(high - 0.53, scale * (0.2 - fewest)))
    share = 3.5 / 16
    variance = 0.53 * 0.47 / 100 + 0.6**2 * share * (1 - share) / 15 * (1 - 15 / 60)
    assert row.se == pytest.approx(np.sqrt(variance))
    assert (row.attacked, row.drawn, row.drawn_broken) == (23, 15, 3)


def test_over_repeated_draws_from_the_same_images_the_estimate_is_unbiased():
    """Whatever AutoAttack breaks: here by the margin, in one class, and at random."""
    y, survived, margin = survivors()
    rng = np.random.default_rng(2)
    withstood = (margin > 0.2) & ((y != 1) | (margin < 1)) & (rng.random(len(y)) < 0.9)
    truth = np.bincount(y, survived & withstood) / np.bincount(y)
    draws = np.array(
        [
            estimated(y, survived, margin, withstood, Design(seed=seed)).robust_acc
            for seed in range(300)
        ]
    )
    error = draws.std(0) / np.sqrt(300)
    assert (np.abs(draws.mean(0) - truth) < 4 * error).all()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("one_class", [False, True])
def test_intervals_cover_where_gradients_are_hidden(share, one_class):
    """AutoAttack breaks survivors whatever their margin; the images are drawn anew each time."""
    draws = 200
    inside = np.zeros((draws, 5), bool)
    over_classes = np.zeros((draws, 2), bool)
    rates = np.where(np.arange(5) == 2, share, 0.0) if one_class else np.full(5, share)
    truth = (0.4 + 0.1 * np.arange(5)) * (1 - rates)
    for seed in range(draws):
        y, survived, margin = survivors(seed=seed)
        withstood = np.random.default_rng([seed, 1]).random(len(y)) >= rates[y]
        sample = choose(y, survived, margin, Design(seed=seed))
        found = counts(y, survived, sample, withstood[sample.places])
        table = class_estimates(found)
        inside[seed] = (table.low <= truth) & (truth <= table.high)
        for i, (name, value) in enumerate((("average", truth.mean()), ("worst", truth.min()))):
            low, high = totals(found)[f"{name}_interval"]
            over_classes[seed, i] = low <= value <= high
    # 93 % and what chance takes of 200 draws: two errors of 1.8 points; of 1,000 one of 0.8
    assert inside.mean(0).min() > 0.93 - 0.036
    assert inside.mean() > 0.93
    assert over_classes.mean(0).min() > 0.93 - 0.036


def test_no_break_in_the_random_part_is_no_certainty():
    """An interval by the variance alone would have the width of the images only."""
    none = tally(n=[1000], hard=[35], robust=[30], rest=[665], drawn=[35], broken=[0])
    (row,) = class_estimates(none).itertuples()
    low, high = wilson(695, 1000)
    assert row.high == pytest.approx(high)
    assert row.low < low - 0.02
    # a class in which 5 % are broken shows no break in one of six samples of 35
    assert row.low < (30 + 665 * 0.95) / 1000


def test_more_breaks_widen_the_interval():
    width = []
    for broken in (0, 2, 7, 17):
        some = tally(n=[1000], hard=[35], robust=[30], rest=[665], drawn=[35], broken=[broken])
        (row,) = class_estimates(some).itertuples()
        width.append(row.high - row.low)
    assert width == sorted(width)


def test_totals_of_classes_that_are_attacked_whole():
    whole = tally(
        n=[50, 80, 100], hard=[30, 40, 90], robust=[20, 40, 85], rest=[0] * 3, drawn=[0] * 3,
        broken=[0] * 3,
    )  # fmt: skip
    found = totals(whole)
    assert found["average"] == pytest.approx(np.mean([0.4, 0.5, 0.85]))
    assert found["share"] == pytest.approx(145 / 230)
    assert found["share_interval"] == pytest.approx([float(end) for end in wilson(145, 230)])
    assert found["worst"] == found["tail"] == 0.4
    assert found["worst_interval"] == pytest.approx(worst_interval([20, 40, 85], [50, 80, 100]))


def test_absent_classes_have_no_row():
    y = np.array([0, 0, 2, 2, 2])
    table = estimated(y, np.ones(5, bool), np.arange(5.0), np.array([1, 1, 1, 0, 1], bool))
    assert table.n.tolist() == [2, 3]
    np.testing.assert_allclose(table.robust_acc, [1, 2 / 3])


def test_without_survivors_all_is_known():
    y = np.arange(20) % 2
    none = np.zeros(20, bool)
    sample = choose(y, none, np.zeros(20))
    assert len(sample.places) == 0
    table = class_estimates(counts(y, none, sample, np.zeros(0, bool)))
    assert (table.robust_acc == 0).all()
    assert (table.attacked == 0).all()
    np.testing.assert_allclose(table.high, wilson(0, 10)[1])


def test_jeffreys_by_its_quantiles():
    low, high = two_phase.jeffreys([0, 5, 35], 35)
    assert (low[0], high[2]) == (0, 1)
    np.testing.assert_allclose(high[0], stats.beta.ppf(0.975, 0.5, 35.5))
    np.testing.assert_allclose([low[1], high[1]], stats.beta.ppf([0.025, 0.975], 5.5, 30.5))


def test_breaks_are_a_line_and_many_accuse():
    def line(*broken):
        zero = [0] * len(broken)
        columns = {"n": [1000] * len(broken), "hard": zero, "robust": zero}
        drawn = {"rest": [700] * len(broken), "drawn": [35] * len(broken), "broken": broken}
        names = [f"class {k}" for k in range(len(broken))]
        return two_phase.warning(tally(**columns, **drawn), "PGD-20 and CW-20", names)

    assert line(0, 0) == ""
    few = line(1, 0)
    assert few.startswith("1 of 70 randomly drawn images that PGD-20 and CW-20 left were broken by")
    assert "hides" not in few + line(4, 1, *[0] * 8)
    assert "the network hides its gradients; the intervals widen" in line(*[3] * 10)
    assert "hides its gradients, most for class 1; the intervals widen" in line(
        0, 12, 0, 0, 0, 0, 0, 0, 0, 0
    )


@pytest.mark.parametrize(
    "settings", [{"hard": -0.1}, {"random": 1.1}, {"least": 0}, {"hard": float("nan")}], ids=str
)
def test_a_design_that_estimates_nothing_is_refused(settings):
    with pytest.raises(MetricError, match="shares in"):
        Design(**settings)


def test_other_images_than_survivors_are_refused():
    y, survived, margin = survivors(200)
    sample = choose(y, survived, margin)
    with pytest.raises(MetricError, match="survivors of phase one"):
        counts(y, ~survived, sample, np.ones(len(sample.places), bool))
    with pytest.raises(MetricError, match="survivors of phase one"):
        counts(y, survived, sample, np.ones(3, bool))
    hard = sample._replace(places=sample.places[sample.hard], hard=sample.hard[sample.hard])
    with pytest.raises(MetricError, match="none of them is drawn"):
        counts(y, survived, hard, np.ones(len(hard.places), bool))
