import tracemalloc

import numpy as np
import pytest
from scipy import stats

from crat.analysis import claims
from crat.analysis import comparisons as c
from crat.analysis import metrics as m

TIES, CLEAR = np.full(10, 0.3), np.r_[0.3, np.full(9, 0.6)]
SLOPE = np.linspace(0.35, 0.85, 10)


def claim(functional="average", **options):
    return claims.Claim("Tian et al. 2021", "abstract", "A is better than B", functional, **options)


def images(n, n_classes=10):
    return np.repeat(np.arange(n_classes), n)


def trained(rng, p, y, seeds, latent, seed_sd=0.0, agree=0.8):
    """Runs (S, N) of one method: class accuracies p (K,), moved by each seed; runs agree through
    the image's latent.
    """
    moved = np.clip(p + seed_sd * rng.standard_normal((seeds, len(p))), 0.01, 0.99)
    noise = rng.standard_normal((seeds, y.size))
    return np.sqrt(agree) * latent + np.sqrt(1 - agree) * noise < stats.norm.ppf(moved)[:, y]


def pair(seed, p_a, p_b, n=200, seeds=3, **options):
    """Labels and the runs of two methods on the same images."""
    rng, y = np.random.default_rng(seed), images(n, len(p_a))
    latent = rng.standard_normal(y.size)
    return (
        y,
        trained(rng, p_a, y, seeds, latent, **options),
        trained(rng, p_b, y, seeds, latent, **options),
    )


def test_one_seed_never_decides():
    y, a, b = pair(0, SLOPE, SLOPE - 0.3, seeds=1)
    found = c.compare(y, a, b)
    assert (found.kind, found.p) == ("checkpoints", c.mcnemar(a[0], b[0]))
    assert found.p < 1e-9 < 0.2 < found.low
    assert claims.decide(claim(), found).verdict == "undecided"
    # one of the two has one seed
    assert c.compare(y, np.vstack([a, a]), b, "worst").kind == "checkpoints"


def test_the_variance_is_that_of_the_rule():
    """Two methods of one stratum: what seeds do to both alike is taken off."""
    y, a, b = pair(1, SLOPE, SLOPE - 0.05, seeds=4, seed_sd=0.02)
    found = c.compare(y, a, b, "average", draws=4000)
    rest = (a.mean(1) - b.mean(1)).var(ddof=1) / 2  # of one run, beside method and seed
    per_image = a.mean(0) - b.mean(0)
    v_img = np.mean([per_image[y == k].var() / 200 for k in range(10)]) / 10
    variance = 2 * rest / 4 + v_img
    df = variance**2 / ((2 * rest / 4) ** 2 / 3)
    half = stats.t.isf(0.025, df) * np.sqrt(variance)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)
    assert (found.seed_df, found.seeds) == (3, 4)
    half90 = stats.t.isf(0.05, df) * np.sqrt(variance)
    assert (found.high90 - found.low90) / 2 == pytest.approx(half90, rel=0.03)


def test_the_first_seeds_that_both_have_are_compared():
    y, a, b = pair(1, SLOPE, SLOPE - 0.05, seeds=4, seed_sd=0.02)
    found = c.compare(y, a[:2], b, "average", draws=200)
    assert found.value == pytest.approx(a[:2].mean() - b[:2].mean())
    assert found.seeds == 2
    assert found.seed_df == 1  # six runs, less two methods and three more seeds


def test_several_methods_are_compared_by_their_mean():
    """Seeds count once, and each method adds as many runs as it has."""
    y, a, b = pair(1, SLOPE, SLOPE - 0.05, seeds=3, seed_sd=0.02)
    _, c_, d = pair(2, SLOPE, SLOPE - 0.1, seeds=3, seed_sd=0.02)
    found = c.compare(y, [a, c_], [b, d], "average", draws=400)
    assert found.value == pytest.approx((a.mean() + c_.mean() - b.mean() - d.mean()) / 2)
    rest = c.residual([runs.mean(1) for runs in (a, c_, b, d)])
    assert found.seed_variance == pytest.approx(2 * rest.variance / 6)
    assert (found.seed_df, found.seeds) == (rest.df, 3)
    assert found.image_variance < c.compare(y, a, b, "average", draws=400).image_variance
    strata = c.compare(y, [a, c_], [b, d], "average", like_b=[], draws=400)
    rests = [c.residual([runs.mean(1) for runs in group]) for group in ((a, c_), (b, d))]
    assert strata.seed_variance == pytest.approx(sum(r.variance for r in rests) / 6)
    alone = c.compare(y, [a[:1], c_[:1]], [b[:1], d[:1]], "average", draws=400)
    assert alone.kind == "checkpoints"
    assert np.isnan(alone.p)


@pytest.mark.parametrize("functional", ["average", "worst"])
def test_a_mean_over_methods_decides_at_most_five_percent(functional):
    """Six methods with and six without: seeds and rest vary, nothing else does."""
    rng = np.random.default_rng(7)
    decided = 0
    for _ in range(200):
        block = 0.02 * rng.standard_normal(3)
        y = images(100)
        p = SLOPE[y] + block[:, None] + 0.02 * rng.standard_normal((12, 3, 1))
        runs = rng.random((12, 3, y.size)) < p
        decided += c.compare(y, runs[:6], runs[6:], functional, draws=100).p < 0.05
    assert decided <= 16  # 5 % of 200, and two standard deviations


def test_methods_of_the_stratum_lend_their_variance():
    y, a, b = pair(1, SLOPE, SLOPE - 0.05, seeds=3, seed_sd=0.02)
    _, third, fourth = pair(2, SLOPE, SLOPE - 0.1, seeds=3, seed_sd=0.02)
    assert c.compare(y, a, b, like_a=[third, fourth], draws=50).seed_df == 6
    at_an_end = [third & False, third | True]
    assert c.compare(y, a, b, like_a=[third, *at_an_end], draws=50).seed_df == 4, (
        "a floor or a ceiling has no variance to lend"
    )
    assert c.compare(y, a, b, like_a=[fourth[:1]], draws=50).seed_df == 2, "one seed has none"


def test_two_strata_have_a_variance_each():
    """A run without an average varies four times as much as one with it."""
    rng = np.random.default_rng(3)
    loud = [0.5 + 0.04 * rng.standard_normal(8) for _ in range(5)]
    calm = [0.5 + 0.01 * rng.standard_normal(8) for _ in range(5)]
    y = images(500)

    def runs(values):
        return np.stack([np.arange(y.size) % 1000 < 1000 * v for v in values])

    a, *like_a = map(runs, loud)
    b, *like_b = map(runs, calm)
    found = c.compare(y, a, b, like_a=like_a, like_b=like_b, draws=50)
    rests = [c.residual([r.mean(1) for r in group]) for group in ([a, *like_a], [b, *like_b])]
    assert found.seed_variance == pytest.approx(sum(rest.variance for rest in rests) / 8)
    assert rests[0].df == rests[1].df == 28
    assert 28 <= found.seed_df <= 33  # Satterthwaite: nearly that of the louder stratum
    assert (
        found.seed_variance
        < c.compare(y, a, runs(loud[1]), like_a=like_a[1:], draws=50).seed_variance
    )


def test_a_residual_is_that_of_a_two_way_table():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((4, 1)) + rng.standard_normal(5) + 0.1 * rng.standard_normal((4, 5))
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    found = c.residual(list(table))
    assert found.df == 12
    assert found.variance == pytest.approx((rest**2).sum() / 12)
    # a method with fewer seeds; a method alone has its own variance
    assert c.residual([table[0], table[1, :3]]).df == 2
    assert c.residual([table[0]]).variance == pytest.approx(table[0].var(ddof=1))


def test_satterthwaite_by_hand():
    both = c.together(c.Noise(2.0, 4), c.Noise(1.0, 8), c.Noise(0.5))
    assert both.variance == 3.5
    assert both.df == pytest.approx(3.5**2 / (4 / 4 + 1 / 8))
    assert c.together(c.Noise(0.0)).df == np.inf


def test_an_undecided_row_says_why():
    found = [
        c.Estimate(0.03, 0.02, 0.04, 0.01, "checkpoints", 0.02),
        c.Estimate(0.03, 0.01, 0.05, 0.03, detectable=0.02),
        c.Estimate(0.01, -0.03, 0.05, 0.6, detectable=0.07),
    ]
    table = claims.claims_table([claims.decide(claim(), e) for e in found])
    ends = [claims.ours(row).partition("points, ")[2] for row in table.itertuples()]
    assert ends == ["one seed", "p 0.060 corrected", "detectable 7.0"]


def test_compare_is_antisymmetric_and_repeatable():
    y, a, b = pair(2, SLOPE, SLOPE - 0.05, n=50)
    for functional in (*m.FUNCTIONALS, "crossfit"):
        one, other = (
            c.compare(y, a, b, functional, draws=200),
            c.compare(y, b, a, functional, draws=200),
        )
        assert one.value == pytest.approx(-other.value)
        assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.3)
    assert c.compare(y, a, b, "worst") == c.compare(y, a, b, "worst")


def test_equal_predictions_are_no_effect():
    y, a, _ = pair(3, SLOPE, SLOPE, n=50)
    same = c.compare(y, a[[0, 0]], a[[0, 0]], "worst")
    assert (same.value, same.p) == (0, 1)
    assert (same.low, same.high) == pytest.approx((0, 0), abs=1e-9)
    assert claims.decide(claim("worst"), same).verdict == "no effect"


def test_the_worst_class_needs_plug_in_and_crossfit():
    y, a, b = pair(4, SLOPE, SLOPE - 0.05)
    worst, cross, plug_in = (
        c.compare(y, a, b, f) for f in ("worst", "crossfit", lambda acc: acc.min())
    )
    assert (worst.low, worst.high) == (min(plug_in.low, cross.low), max(plug_in.high, cross.high))
    assert worst.value == plug_in.value
    assert worst.p == max(plug_in.p, cross.p)


@pytest.mark.parametrize(
    ("functional", "p_a", "p_b"),
    [
        ("average", SLOPE + 0.03, SLOPE),
        ("worst", np.r_[0.4, SLOPE[1:] + 0.2], np.r_[0.3, SLOPE[1:] + 0.2]),
        ("tail", SLOPE + 0.05, SLOPE),
        *(
            (f, np.linspace(0.2, 0.9, 10), np.linspace(0.45, 0.65, 10))
            for f in ("gap", "spread", "variance", "nsd")
        ),
    ],
)
def test_planted_effects_are_found(functional, p_a, p_b):
    found = [
        c.compare(*pair(s, p_a, p_b, n=1000, seed_sd=0.005), functional, draws=300)
        for s in range(10)
    ]
    verdicts = [
        claims.decide(claim(functional, smallest_difference=0.02), e).verdict for e in found
    ]
    assert verdicts.count("supported") >= 8, verdicts
    assert "reversed" not in verdicts


def test_two_attacks_on_the_same_networks_are_paired_by_run():
    """Seeds move both attacks together by five points; the second attack is one and a half
    points stronger in each.
    """
    y, a, _ = pair(5, SLOPE, SLOPE, n=500, seeds=5)
    rng = np.random.default_rng(5)
    a &= rng.random(a.shape) > np.array([0, 0.05, 0.1, 0.15, 0.2])[:, None]
    b = a & (rng.random(a.shape) > 0.025)
    paired = c.contrast(y, a, b)
    assert claims.decide(claim(), paired).verdict == "supported"
    assert paired.seed_df == 4
    assert paired.seed_variance == pytest.approx((a.mean(1) - b.mean(1)).var(ddof=1) / 5)
    assert c.contrast(y, a, b, siblings=[(a[:3], b[:3])]).seed_df == 6
    # at the floor under one of the two seeds cannot differ
    assert c.contrast(y, a, b, siblings=[(a[:3], np.zeros_like(a[:3]))]).seed_df == 4
    with pytest.raises(c.ClaimError, match="as many runs of each, not 5 and 4"):
        c.contrast(y, a, b[:4])


def test_two_at_the_floor_are_told():
    y, a, b = pair(6, SLOPE, SLOPE)
    weakest = y == 0
    low = [runs & ~(weakest & (np.arange(y.size) % 200 > 5)) for runs in (a, b)]
    assert c.compare(y, *low, "worst", draws=50).kind == "floor"
    assert c.compare(y, *low, "average", draws=50).kind == "runs"
    assert c.contrast(y, *low, "worst", draws=50).kind == "floor"


@pytest.mark.parametrize("functional", ["average", "worst", "tail", "gap"])
def test_seeds_alone_decide_at_most_five_percent(functional):
    declared = claim(functional, smallest_difference=1e-9)
    found = [
        c.compare(*pair(s, SLOPE, SLOPE, n=60, seed_sd=0.02), functional, draws=200)
        for s in range(150)
    ]
    decided = [claims.decide(declared, e).verdict in ("supported", "reversed") for e in found]
    assert np.mean(decided) <= 0.05


@pytest.mark.parametrize(
    ("p_a", "p_b"), [(TIES, TIES), (TIES, CLEAR), (np.linspace(0.3, 0.4, 10), CLEAR)]
)
def test_ties_keep_their_coverage(p_a, p_b):
    """The true difference of the worst classes is 0; ten near-ties against one clear worst
    class, five seeds.
    """
    found = [c.compare(*pair(s, p_a, p_b, n=100, seeds=5), "worst", draws=200) for s in range(120)]
    assert np.mean([e.low <= 0 <= e.high for e in found]) >= 0.93


def test_the_plug_in_minimum_alone_would_not():
    found = [
        c.compare(*pair(s, TIES, CLEAR, n=100, seeds=5), lambda acc: acc.min(), draws=100)
        for s in range(60)
    ]
    assert np.mean([e.low <= 0 <= e.high for e in found]) < 0.9


def test_mcnemar_is_exact():
    a, b = np.r_[np.ones(9, bool), np.zeros(2, bool)], np.r_[np.zeros(8, bool), np.ones(3, bool)]
    # 8 against 2
    assert c.mcnemar(a, b) == pytest.approx(2 * sum(stats.binom.pmf(k, 10, 0.5) for k in range(3)))
    assert c.mcnemar(a, a) == 1
    with pytest.raises(m.MetricError, match="must be bool"):
        c.mcnemar(np.array([3, 1]), np.array([3, 2]))


def test_a_share_against_its_reference():
    declared = claim("share", smallest_difference=0.05)
    high = c.share([80, 82, 79], [100, 100, 98], reference=0.5)
    assert claims.decide(declared, high).verdict == "supported"
    assert (
        claims.decide(declared, c.share([30, 28, 31], [100, 100, 100], 0.5)).verdict == "reversed"
    )
    one = c.share(80, 100, 0.5)
    assert (one.low + 0.5, one.high + 0.5) == pytest.approx(m.wilson(80, 100))
    assert claims.decide(declared, one).verdict == "undecided"
    assert claims.decide(declared, c.share([0, 0], [0, 5], 0.5)).verdict == "undecided"


def test_a_share_covers_its_truth():
    """One set of images for all seeds: a run's success is the image's own, with a little noise."""
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        image = rng.random(150) < 0.6
        k = [(image ^ (rng.random(150) < 0.05)).sum() for _ in range(3)]
        found = c.share(k, [150] * 3, 0.6 * 0.95 + 0.4 * 0.05)
        held.append(found.low <= 0 <= found.high)
    assert np.mean(held) >= 0.93


def test_rank_correlation_of_classes():
    rng, y = np.random.default_rng(0), images(300)
    clean, robust, strong = (
        rng.random((3, y.size)) < p[y] for p in (SLOPE[::-1], SLOPE, SLOPE - 0.1)
    )
    declared = claim("rank correlation", smallest_difference=0.3)
    same = c.rank_correlation(y, robust, strong, draws=300)
    orders = [m.class_accuracy(y, runs, 10).mean(0) for runs in (robust, strong)]
    assert same.value == pytest.approx(stats.spearmanr(*orders).statistic)
    assert claims.decide(declared, same).verdict == "supported"
    assert same.low <= same.value <= same.high
    assert (
        claims.decide(declared, c.rank_correlation(y, robust, clean, draws=300)).verdict
        == "reversed"
    )
    assert (
        claims.decide(
            declared, c.rank_correlation(y, robust[0], -np.arange(10.0), draws=300)
        ).verdict
        == "reversed"
    )
    better = c.rank_correlation(y, robust, strong, beat=clean, draws=300)
    assert better.low > 1
    assert better.note == "rho +1.000, baseline -1.000"
    # nothing beats itself
    assert c.rank_correlation(y, robust, strong, beat=robust | False, draws=300).value <= 0


def test_an_order_that_is_none():
    y = images(20)
    assert np.isnan(c.rank_correlation(y, np.ones(200, bool), np.arange(10.0)).value)
    for wrong in (np.arange(200), np.arange(9.0)):
        with pytest.raises(c.ClaimError, match="one number per class"):
            c.rank_correlation(y, y > 3, wrong)


def test_unrelated_orders_are_rarely_decided():
    """The permutation test's size is .0484 at seven classes (counted in test_metrics): the share
    found is binomial.
    """
    declared, y, found = claim("rank correlation", smallest_difference=1e-9), images(100, 7), 0
    for s in range(300):
        rng = np.random.default_rng(s)
        a, b = (rng.random(y.size) < rng.uniform(0.2, 0.8, 7)[y] for _ in range(2))
        found += claims.decide(declared, c.rank_correlation(y, a, b, draws=100)).verdict in (
            "supported",
            "reversed",
        )
    assert stats.binomtest(found, 300, 0.05, alternative="greater").pvalue > 0.01


def test_a_pearson_r_of_6_at_ten_classes_spans_nearly_everything():
    x = np.linspace(-1, 1, 10)
    noise = x**2 - (x**2).mean()  # orthogonal to x
    found = c.pearson(x, 0.6 * x / np.linalg.norm(x) + 0.8 * noise / np.linalg.norm(noise))
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((-0.05, 0.89), abs=0.005)


def test_what_each_run_has_of_its_own_is_counted_apart():
    k, n = np.array([8, 9, 7, 8, 8, 9]), np.full(6, 11)
    shared, own = c.share(k, n, 0.5), c.share(k, n, 0.5, shared=False)
    assert own.value == shared.value
    assert own.high - own.low < 0.5 * (shared.high - shared.low)


def test_a_thousand_classes_are_ordered_in_little_memory():
    """The permutations are drawn block by block by one generator: the p of all at once, which
    took 1.6 GB.
    """
    rng = np.random.default_rng(1)
    y, truth = np.repeat(np.arange(1000), 4), rng.random(1000)
    a, b = rng.random((2, 2, y.size)) < truth[y]
    tracemalloc.start()
    found = c.rank_correlation(y, a, b, draws=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    assert 0 < found.p < 0.001

    x, z = rng.random((2, 200))
    ranks, others = ((2 * stats.rankdata(v)).astype(int) for v in (x, z))
    drawn = np.random.default_rng(0).permuted(np.tile(others, (99_999, 1)), axis=1) @ ranks
    centre = ranks.sum() * others.sum() / 200
    assert (
        m.permutation_p(x, z)
        == (1 + (abs(drawn - centre) >= abs(ranks @ others - centre)).sum()) / 100_000
    )


def test_a_mean_over_seeds_is_students():
    """A statistic of whole runs: the t interval by hand; one seed decides nothing."""
    values = np.array([0.2, 0.6, 0.4])
    found = c.over_seeds(values)
    low, high = stats.t.interval(0.95, 2, 0.4, 0.2 / np.sqrt(3))
    assert (found.value, found.low, found.high) == pytest.approx((0.4, low, high))
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (found.seeds, found.df) == (3, 2)
    assert c.over_seeds([0.5]).kind == "checkpoints"
    assert c.over_seeds([]).note == "no run to count"
