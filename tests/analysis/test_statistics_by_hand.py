"""The statistics at numbers worked out by hand, each formula written out once more: every
column, limit and p.
"""

from math import atanh, comb, inf, isnan, sqrt, tanh

import numpy as np
import pytest
from scipy import stats

from crat.analysis import comparisons as c
from crat.analysis import metrics as m
from crat.analysis import variation as v

Y = np.array([0, 0, 0, 0, 1, 1, 3, 3, 3, 3])  # class 2 absent, classes of unequal size
CLEAN = np.array([0, 0, 0, 1, 1, 1, 3, 3, 0, 0])
PGD = np.array([0, 1, 1, 0, 1, 0, 3, 1, 3, 0])
CW = np.array([1, 0, 1, 1, 1, 1, 3, 1, 0, 0])
Z = 1.959963984540054  # the normal's two-sided 5 %
Z_POWER = 0.8416212335729143  # its one-sided 20 %


def test_summary_counts_every_column_of_every_attack():
    """Attacked images alone: adv_acc counts images that were wrong when clean, too."""
    table = m.summary(Y, CLEAN, {"pgd": PGD, "cw": CW}, "abcd").set_index(["attack", "class"])
    expected = {  # adv_acc of a, b, d; robust_acc of a, b, d
        "clean": ([3 / 4, 1, 1 / 2], [3 / 4, 1, 1 / 2]),
        "pgd": ([1 / 2, 1 / 2, 1 / 2], [1 / 4, 1 / 2, 1 / 4]),
        "cw": ([1 / 4, 1, 1 / 4], [1 / 4, 1, 1 / 4]),
        "union": ([0, 1 / 2, 1 / 4], [0, 1 / 2, 1 / 4]),
    }
    for attack, (adv, robust) in expected.items():
        rows = table.loc[attack].loc[["a", "b", "d"]]
        assert rows.adv_acc.tolist() == adv
        assert rows.robust_acc.tolist() == robust
        assert rows.clean_acc.tolist() == [3 / 4, 1, 1 / 2]
        assert rows.boundary_error.tolist() == [3 / 4 - robust[0], 1 - robust[1], 1 / 2 - robust[2]]
        assert rows.n.tolist() == [4, 2, 4]
        for k, n, (low, high) in zip(robust, rows.n, rows[["low", "high"]].to_numpy(), strict=True):
            assert (low, high) == pytest.approx(m.wilson(k * n, n))


def test_the_worst_class_shares_the_error_among_the_classes():
    """Bonferroni over K = 3 classes present: each interval is one of 1 - .05 / 3; lowest limits
    of each side.
    """
    low, high = m.worst_interval([8, 5, 0, 6], [10, 10, 0, 8])
    z = stats.norm.isf(0.05 / 3 / 2)
    for limit, p, n, sign in ((low, 0.5, 10, -1), (high, 0.5, 10, 1)):
        # Wilson's score equation
        assert limit - p == pytest.approx(sign * z * sqrt(limit * (1 - limit) / n))


def test_a_spread_without_a_mean_is_unknown():
    assert isnan(m.nsd(np.zeros(3)))
    assert m.nsd(np.array([0.2, 0.4])) == pytest.approx(1 / 3)


def test_totals_hold_the_crossfit_worst_of_each_attack():
    y, robust = (
        np.repeat([0, 1], 8),
        np.array([1, 1, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0], bool),
    )
    table = m.totals(y, y, {"pgd": np.where(robust, y, 1 - y)}).set_index("attack")
    acc = [[robust[(y == k) & (m.halves(y) == h)].mean() for h in (0, 1)] for k in (0, 1)]
    first, second = np.argmin(acc, 0)
    assert table.loc["pgd", "crossfit"] == pytest.approx((acc[first][1] + acc[second][0]) / 2)
    assert table.loc["clean", ["average", "worst", "crossfit", "gap"]].tolist() == [1, 1, 1, 0]


def test_hazard_columns_by_hand():
    robust, strong = (
        np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], bool),
        np.array([1, 0, 0, 1, 1, 1, 0, 0, 0, 0], bool),
    )
    table = m.hazard(Y, robust, strong, "abcd").set_index("class").loc[["a", "b", "d"]]
    assert table.robust_acc.tolist() == [3 / 4, 1, 1 / 4]
    limits = [m.wilson(lost, of) for lost, of in ((2, 3), (0, 2), (1, 1))]
    np.testing.assert_allclose(table[["low", "high"]], limits)


def test_ranks_of_many_classes_are_drawn_99_999_times():
    """Nothing drawn is as extreme as the same order of twelve classes: only the observed one
    counts.
    """
    assert m.permutation_p(np.arange(12), np.arange(12)) == 1 / 100_000
    assert m.permutation_p(np.arange(12), -np.arange(12)) == 1 / 100_000
    x = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.0])
    y = np.array([3, 0, 1, 4, 2, 8, 9, 5, 10, 6, 7.0])
    rho = 1 - 6 * 60 / (11 * 120)
    assert m.spearman(x, y) == pytest.approx(rho)
    student = 2 * stats.t.sf(rho * sqrt(9 / (1 - rho**2)), 9)  # an approximation: a few per cent
    assert m.permutation_p(x, y) == pytest.approx(student, rel=0.3)


def test_ten_classes_are_still_counted_and_eleven_drawn():
    same, eleven = np.arange(10), np.arange(11)
    assert m.permutation_p(same, same) == pytest.approx(2 / 3_628_800)
    assert m.permutation_p(eleven, eleven) == 1 / 100_000


def test_the_ceiling_is_stepped_up_by_spearman_and_brown():
    rng, y = np.random.default_rng(3), np.repeat(np.arange(6), 20)
    runs = rng.random((2, 120)) < np.linspace(0.3, 0.7, 6)[y]
    rhos = []
    for seed in range(5):
        half = m.halves(y, seed)
        acc = [[runs[:, (y == k) & (half == h)].mean() for k in range(6)] for h in (0, 1)]
        rhos.append(stats.spearmanr(*acc).statistic)
    rho = np.mean(rhos)
    assert rho > 0.2
    assert m.split_half(y, runs, 5) == pytest.approx(2 * rho / (1 + rho))
    against = m.split_half(np.repeat([0, 1, 2], 2), [1, 0, 0, 1, 1, 0], 200)
    assert against <= 0  # below 0 nothing is stepped up


def test_a_published_mean_by_hand():
    """Ours .26, .24, .25 less .217 +- .01 of 5 runs: se = .01 sqrt(1/3 + 1/5), Student's t with
    4 degrees.
    """
    found, se = c.against_published([0.26, 0.24, 0.25], 0.217, 0.01, 5), 0.01 * sqrt(1 / 3 + 1 / 5)
    t, t_power = 2.7764451051977987, 0.9409646
    assert found.value == pytest.approx(0.033)
    assert (found.low, found.high) == pytest.approx((0.033 - t * se, 0.033 + t * se))
    assert found.p == pytest.approx(2 * stats.t.sf(0.033 / se, 4))
    assert found.detectable == pytest.approx((t + t_power) * se, rel=1e-6)
    assert (found.kind, found.df) == ("published", 4)
    exact = c.against_published([0.2, 0.3], 0.25, 0.0)
    assert (exact.value, exact.p) == (pytest.approx(0), 1.0)
    assert c.against_published([0.2, 0.2], 0.1, 0.0).p == 0.0


def test_a_share_by_hand():
    """Three runs on shared images: seeds' variance / 3 with 2 degrees, and an image's binomial
    one, from Wilson's width, once; the degrees of both by Satterthwaite.
    """
    k, n = np.array([80, 70, 75]), np.array([100, 100, 100])
    found = c.share(k, n, 0.5)
    widths = [
        (high - low) / 2 / Z for low, high in (m.wilson(a, b) for a, b in zip(k, n, strict=True))
    ]
    images, seeds = np.mean(np.square(widths)), np.var(k / n, ddof=1)
    assert found.value == pytest.approx(0.25)
    assert (found.seed_df, found.kind) == (2, "runs")
    own = c.share(k, n, 0.5, shared=False)
    for estimate, of_images in ((found, images), (own, images / 3)):
        variance = seeds / 3 + of_images
        assert estimate.df == pytest.approx(variance**2 / ((seeds / 3) ** 2 / 2))
        half = stats.t.isf(0.025, estimate.df) * sqrt(variance)
        assert (estimate.low, estimate.high) == pytest.approx((0.25 - half, 0.25 + half))
    lent = c.share(k, n, 0.5, siblings=[([50, 60], [100, 100])])
    assert lent.seed_df == 3
    assert lent.seed_variance == pytest.approx((2 * seeds + 0.005) / 3 / 3)
    one = c.share(8, 10, 0.5)
    assert one.p == pytest.approx(2 * sum(comb(10, i) for i in (0, 1, 2)) / 2**10)
    assert (one.low, one.high) == pytest.approx([limit - 0.5 for limit in m.wilson(8, 10)])
    assert (one.value, one.kind) == (pytest.approx(0.3), "checkpoints")
    assert all(
        isnan(x) for x in (lambda e: (e.value, e.low, e.high, e.p))(c.share([0, 3], [0, 5], 0.5))
    )


def test_a_correlation_by_hand():
    x, y = np.arange(7.0), np.array([0, 2, 1, 3, 5, 4, 6.0])
    found = c.pearson(x, y)
    r = 1 - 6 * 4 / (7 * 48)  # no ties: Pearson's on ranks is Spearman's
    low, high = (tanh(atanh(r) + sign * Z / sqrt(4)) for sign in (-1, 1))
    assert (found.value, found.low, found.high) == pytest.approx((r, low, high))
    assert found.p == pytest.approx(2 * stats.t.sf(r * sqrt(5 / (1 - r**2)), 5))
    assert found.detectable == pytest.approx(tanh((Z + Z_POWER) / sqrt(7 - 3)))
    assert found.kind == "correlation"
    assert c.pearson([0, 1, 2.0], [0, 1, 3.0]).detectable == pytest.approx(tanh(Z + Z_POWER))


def test_an_order_against_an_order_by_hand():
    """Four classes with 4, 3, 2 and 1 of 5 right, and numbers in nearly that order: rho = 1 - 6
    * 2 / (4 * 15).
    """
    y = np.repeat(np.arange(4), 500)
    right = np.concatenate([np.arange(500) < 100 * k for k in (4, 3, 2, 1)])
    found = c.rank_correlation(y, right, [4, 3, 1, 2.0], draws=200)
    assert found.value == pytest.approx(0.8)
    # no resampled class leaves its place
    assert (found.low, found.high) == pytest.approx((0.8, 0.8))
    # of 24 orders one has rho 1, three .8, and as many on the other side
    assert found.p == pytest.approx(8 / 24)
    assert found.note == "rho +0.800"
    beaten = c.rank_correlation(y, right, [4, 3, 1, 2.0], beat=[1, 2, 3, 4.0], draws=199)
    assert beaten.value == pytest.approx(1.8)
    assert beaten.p == pytest.approx(2 / 200)  # not one of the draws is on the other side
    even = c.rank_correlation(y, right, [4, 3, 1, 2.0], beat=[4, 3, 1, 2.0], draws=199)
    assert (even.value, even.p) == (0, 1.0)


def test_the_interval_of_an_order_holds_it_where_images_are_few():
    """Ten classes of 20 images, 6 to 15 of them right: every resampled order is another one, so
    its rho is below 1.
    """
    y, counts = np.repeat(np.arange(10), 20), np.arange(6, 16)
    right = np.concatenate([np.arange(20) < n for n in counts])
    same, reverse = (
        c.rank_correlation(y, right, sign * counts.astype(float), draws=400) for sign in (1, -1)
    )
    assert (same.value, same.high) == (pytest.approx(1), pytest.approx(1))
    assert (reverse.value, reverse.low) == (pytest.approx(-1), pytest.approx(-1))
    assert 0 < same.low < 0.9
    assert -0.9 < reverse.high < 0


def test_two_attacks_on_one_network_have_the_variance_of_their_differences():
    """Averages of A .75, .5, of B .5, .5: seeds' variance of the differences / 2; images by the
    plain bootstrap.
    """
    y = np.repeat([0, 1], 200)
    a, b = (np.stack([np.arange(400) % 100 < top for top in tops]) for tops in ((75, 50), (50, 50)))
    found = c.contrast(y, a, b, draws=4000)
    differences = np.array([0.25, 0.0])
    per_image = (a.mean(0) - b.mean(0)).reshape(2, 200)
    images = per_image.var(1).mean() / 200 / 2
    of_seeds = differences.var(ddof=1) / 2
    df = (of_seeds + images) ** 2 / of_seeds**2
    assert found.value == pytest.approx(0.125)
    assert found.seed_df == 1
    assert found.df == pytest.approx(df, rel=0.01)
    half = stats.t.isf(0.025, df) * sqrt(of_seeds + images)
    assert (found.high - found.value) == pytest.approx(half, rel=0.01)


def test_one_seed_has_the_interval_of_its_images():
    y = np.repeat([0, 1], 200)
    a, b = np.arange(400) % 10 < 8, np.arange(400) % 10 < 5
    found = c.compare(y, a, b, draws=4000)
    images = (a ^ b).reshape(2, 200).var(1).mean() / 400
    assert (found.value, found.df, found.kind) == (pytest.approx(0.3), inf, "checkpoints")
    assert found.high - found.value == pytest.approx(Z * sqrt(images), rel=0.05)
    assert found.value - found.low == pytest.approx(Z * sqrt(images), rel=0.05)
    assert found.p == pytest.approx(2 / 2**120)


def test_runs_at_the_floor_or_ceiling_lend_no_variance():
    """1 % and 99 % themselves are taken as the floor and the ceiling; between them every run
    lends a degree.
    """
    y = np.repeat([0, 1], 100)
    a, b = (np.stack([np.arange(200) % 10 < top for top in (8, 7)]) for _ in "ab")

    def degrees(share):
        third = np.stack([np.arange(200) < share * 200] * 2)
        return c.compare(y, a, b, like_a=[third], draws=10).seed_df

    assert [degrees(share) for share in (0.01, 0.015, 0.5, 0.985, 0.99)] == [1, 2, 2, 2, 1]


def test_worst_classes_that_disagree_in_sign_decide_nothing():
    plug_in, cross_fit = c.Estimate(0.02, 0.01, 0.03, 0.01), c.Estimate(-0.01, -0.02, 0.001, 0.02)
    assert c._both(plug_in, cross_fit).p == 1
    same = c._both(plug_in, c.Estimate(0.04, 0.02, 0.05, 0.03, detectable=0.1))
    assert (same.value, same.low, same.high, same.p) == (0.02, 0.01, 0.05, 0.03)
    assert same.note == "cross-fit +0.0400"


def test_the_detectable_gain_by_hand():
    """3 seeds of each, sd 1.3 and .3: (t.975 + t.8 at 4 degrees) sqrt((1.69 + .09) / 3)."""
    assert v.detectable_gain(3, 1.3, 0.3) == pytest.approx(
        (2.7764451 + 0.9409646) * sqrt(1.78 / 3), rel=1e-6
    )
    assert v.detectable_gain(2, 1.0, 0.0, level=0.9, power=0.5) == pytest.approx(
        2.9199856 * sqrt(1 / 2), rel=1e-6
    )
    assert v.seeds_needed(2.9, 1.3, 0.3) == 3
    assert v.detectable_gain(2, 1.3, 0.3) > 2.9 > v.detectable_gain(3, 1.3, 0.3)
    assert v.seeds_needed(1e6, 1.0, 1.0) == 2


def test_a_see_saw_by_hand():
    """Steps +.2, -.1, 0, +.2 and -.1, -.1, +.3, -.2: the third moved only one; two of three are
    opposite.
    """
    found = v.see_saw([0.1, 0.3, 0.2, 0.2, 0.4], [0.5, 0.4, 0.3, 0.6, 0.4])
    a, b = np.array([0.2, -0.1, 0, 0.2]), np.array([-0.1, -0.1, 0.3, -0.2])
    assert (found.opposite, found.steps) == (2, 3)
    assert found.correlation == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found.cancelled == pytest.approx(1 - np.var(a + b) / (np.var(a) + np.var(b)))


def test_classes_cross_beyond_bonferronis_limit_and_not_below():
    """Three classes, four radii: |z| must pass the normal's quantile at .05 / (2 * 3 pairs * 4
    radii) on both sides.
    """
    n, grid = 400, [0.0, 0.1, 0.2, 0.3]
    y = np.repeat([0, 1, 2], n)
    limit = stats.norm.isf(0.05 / (2 * 3 * 4))

    def outcomes(ahead):
        right = np.zeros((4, 1, 3 * n), bool)
        for e, tops in enumerate(
            [(200 + ahead, 200, 0), (200, 200, 0), (200, 200 + ahead, 0), (200, 200, 0)]
        ):
            for k, top in enumerate(tops):
                right[e, 0, k * n : k * n + top] = True
        return right

    def z(ahead):
        p = np.array([200 + ahead, 200]) / n
        return ahead / n / sqrt((p * (1 - p)).sum() / n)

    first = next(a for a in range(200) if z(a) > limit)
    assert v.crossings(y, outcomes(first - 1), grid).empty
    found = v.crossings(y, outcomes(first), grid)
    assert found.drop(columns=["ahead", "behind"]).values.tolist() == [[0, 1, 0.0, 0.2]]
    assert found[["ahead", "behind"]].values.ravel() == pytest.approx([first / n, -first / n])
    assert v.crossings(y, outcomes(first), grid, level=0.999).empty


def test_crossings_are_sorted_by_their_weaker_side():
    """0 and 1 change places most clearly on one side and least on the other; 2 and 3 clearly on
    both.
    """
    y, n = np.repeat(np.arange(4), 400), 400
    tops = [(300, 100, 270, 170), (160, 220, 170, 270)]
    right = np.stack([np.concatenate([np.arange(n) < top for top in at]) for at in tops])[:, None]
    found = v.crossings(y, right, [0, 1])
    p = np.array(tops) / n
    z = [
        [(p[e, i] - p[e, j]) / sqrt((p[e, [i, j]] * (1 - p[e, [i, j]])).sum() / n) for e in (0, 1)]
        for i, j in found[["first", "second"]].to_numpy()
    ]
    weaker, stronger = np.min(np.abs(z), 1), np.max(np.abs(z), 1)
    assert {(0, 1), (2, 3)} <= set(map(tuple, found[["first", "second"]].to_numpy().tolist()))
    assert (np.diff(weaker) < 0).all()
    assert not (np.diff(stronger) < 0).all()


def test_seeds_widen_what_a_crossing_needs():
    """Two seeds that differ by 20 points: their variance / 2 is added to that of the images."""
    y = np.repeat([0, 1], 100)

    def outcomes(spread):
        right = np.zeros((2, 2, 200), bool)
        for e, tops in enumerate([(70, 40), (40, 70)]):
            for s, move in enumerate((-spread, spread)):
                for k, top in enumerate(tops):
                    right[e, s, 100 * k : 100 * k + top + move] = True
        return right

    steady = v.crossings(y, outcomes(0), [0, 1])
    assert steady[["ahead", "behind"]].values.tolist() == [
        [pytest.approx(0.3), pytest.approx(-0.3)]
    ]
    # z = .3 / sqrt(2 (.21 + .24) / 2 / 100 + 2 * sd^2 / 2), sd^2 = 2 spread^2: below 2.5 from a
    # spread of 5 points on
    limit = stats.norm.isf(0.05 / (2 * 1 * 2))
    for spread in range(1, 12):
        z = 0.3 / sqrt((0.21 + 0.24) / 100 + 2 * (spread / 100) ** 2)
        assert v.crossings(y, outcomes(spread), [0, 1]).empty == (z <= limit), spread


def test_a_grids_radius_of_several_networks():
    robust = np.array([[[True, True]], [[False, True]], [[True, True]]])  # (E, 1, N)
    assert v.grid_radius(robust, [0, 0.1, 0.3]).tolist() == [[0.1, inf]]
