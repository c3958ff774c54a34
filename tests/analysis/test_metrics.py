from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crat.analysis import metrics as m

Y = np.array([0, 0, 0, 0, 1, 1, 3, 3, 3, 3])  # class 2 absent, classes of unequal size
CLEAN = np.array([0, 0, 0, 1, 1, 1, 3, 3, 0, 0])
PGD = np.array([0, 1, 1, 0, 1, 0, 3, 1, 3, 0])
CW = np.array([1, 0, 1, 1, 1, 1, 3, 1, 0, 0])
CLASSES = ("a", "b", "c", "d")
accuracies = st.lists(st.floats(0.05, 1), min_size=1, max_size=25).map(np.array)


@st.composite
def labelled(draw, least=1):
    """Labels with at least `least` images per class (some class numbers absent) and two runs."""
    sizes = draw(st.lists(st.integers(least, 9), min_size=1, max_size=6))
    y = np.repeat(2 * np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return rng.permutation(y), rng.random((2, y.size)) < 0.6


def test_class_accuracy_divides_by_the_own_count():
    acc = m.class_accuracy(Y, [CLEAN == Y, PGD == Y], 4)
    np.testing.assert_allclose(acc, [[3 / 4, 1, np.nan, 1 / 2], [1 / 2, 1 / 2, np.nan, 1 / 2]])
    assert m.class_accuracy([0, 0], [True, False], 1).tolist() == [0.5]
    assert m.class_accuracy(Y.astype(np.uint8), CLEAN == Y, 4)[0] == 0.75


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_examples(k, n, low, high):
    """Newcombe 1998 (Statistics in Medicine 17), table I, method 3."""
    np.testing.assert_allclose(m.wilson(k, n), [low, high], atol=6e-5)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_solves_the_score_equation(n, share, level):
    k = round(share * n)
    low, high = m.wilson(k, n, level)
    z = stats.norm.isf((1 - level) / 2)
    for p in (low, high):
        assert (k / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-12)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1


def test_wilson_is_elementwise_and_nan_without_images():
    low, high = m.wilson([0, 3, 0], [5, 5, 0])
    assert low.shape == (3,)
    assert np.isnan([low[2], high[2]]).all()


def test_the_worst_class_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    truth, n = np.r_[np.full(9, 0.3), 0.9], np.full(10, 200)
    bounds = np.array([m.worst_interval(rng.binomial(n, truth), n) for _ in range(1000)])
    assert ((bounds[:, 0] <= 0.3) & (bounds[:, 1] >= 0.3)).mean() >= 0.95
    # an absent class is no class
    assert m.worst_interval([5, 0], [10, 0]) == pytest.approx(m.wilson(5, 10))


def test_robust_means_right_when_clean_and_under_every_attack():
    assert m.robust_correct(Y, CLEAN, PGD).tolist() == [1, 0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert m.robust_correct(Y, CLEAN, PGD, CW).tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0]
    named = m.outcomes(Y, CLEAN, {"pgd": PGD, "cw": CW})
    assert list(named) == ["clean", "pgd", "cw", "union"]
    np.testing.assert_array_equal(named["union"], named["pgd"] & named["cw"])
    assert list(m.outcomes(Y, CLEAN, {"pgd": PGD})) == ["clean", "pgd"]


def test_summary_on_a_hand_made_table():
    table = m.summary(Y, CLEAN, {"pgd": PGD, "cw": CW}, CLASSES).set_index(["attack", "class"])
    assert len(table) == 16
    row = table.loc[("pgd", "a")]
    assert (row.n, row.clean_acc, row.robust_acc, row.boundary_error, row.adv_acc) == (
        4,
        0.75,
        0.25,
        0.5,
        0.5,
    )
    assert (row.low, row.high) == pytest.approx(m.wilson(1, 4))
    assert table.loc[("union", "a")].robust_acc == 0
    assert table.loc[("clean", "d")].robust_acc == table.loc[("cw", "d")].clean_acc == 0.5
    assert table.xs("c", level="class").drop(columns="n").isna().all(axis=None)


def test_totals_on_a_hand_made_table():
    row = m.totals(Y, CLEAN, {"pgd": PGD}).set_index("attack").loc["pgd"]
    acc = np.array([1 / 4, 1 / 2, 1 / 4])
    assert row[["average", "worst", "tail", "gap"]].tolist() == pytest.approx(
        [1 / 3, 1 / 4, 1 / 4, 1 / 4]
    )
    assert row[["variance", "spread", "nsd"]].tolist() == pytest.approx(
        [acc.var(), acc.std(), acc.std() / acc.mean()]
    )
    assert (row.worst_low, row.worst_high) == pytest.approx(
        m.worst_interval([1, 1, 0, 1], [4, 2, 0, 4])
    )


@pytest.mark.parametrize(
    ("n_classes", "worst"), [(1, 1), (3, 1), (5, 1), (9, 2), (10, 3), (15, 3), (20, 4), (100, 20)]
)
def test_the_tail_is_20_percent_of_the_classes_and_30_of_ten(n_classes, worst):
    acc = np.random.default_rng(0).permutation(n_classes) / n_classes
    assert m.tail(acc) == pytest.approx(np.arange(worst).mean() / n_classes)
    assert m.tail(np.append(acc, np.nan)) == m.tail(acc)  # an absent class does not count


@given(accuracies)
def test_functionals_order_and_shift(acc):
    values = {name: float(f(acc)) for name, f in m.FUNCTIONALS.items()}
    assert values["worst"] <= values["tail"] + 1e-12
    assert values["tail"] <= values["average"] + 1e-12
    assert values["spread"] <= values["gap"] / 2 + 1e-9
    assert values["variance"] == pytest.approx(values["spread"] ** 2)
    for f in m.FUNCTIONALS.values():
        assert f(acc[::-1]) == pytest.approx(f(acc))  # the classes have no order
        np.testing.assert_allclose(f(np.stack([acc, acc / 2])), [f(acc), f(acc / 2)])
        assert f(np.append(acc, np.nan)) == pytest.approx(f(acc))


@given(labelled(), st.integers(0, 3))
def test_halves_are_equal_in_every_class(data, seed):
    y, _ = data
    half = m.halves(y, seed)
    for k in np.unique(y):
        assert (half[y == k] == 0).sum() - (half[y == k] == 1).sum() in (0, 1)
    np.testing.assert_array_equal(half, m.halves(y, seed))
    assert (m.halves([0] * 50, seed) != m.halves([0] * 50, seed + 1)).any()


@given(labelled(least=2))
def test_crossfit_against_the_plain_version(data):
    y, runs = data
    half, expected = m.halves(y), []
    for run in runs:
        acc = [[run[(y == k) & (half == h)].mean() for k in np.unique(y)] for h in (0, 1)]
        expected.append((acc[1][np.argmin(acc[0])] + acc[0][np.argmin(acc[1])]) / 2)
    np.testing.assert_allclose(m.per_run(y, runs, "crossfit"), expected)
    assert (m.per_run(y, runs, "crossfit") >= 0).all()


def test_under_ties_the_minimum_is_biased_and_the_crossfit_is_not():
    """Ten classes, all at 30 %, 200 images each: E[min] - p = -1.54 sd (order statistics of the
    normal).
    """
    rng, y = np.random.default_rng(0), np.repeat(np.arange(10), 200)
    runs = rng.random((2000, y.size)) < 0.3
    sd = np.sqrt(0.3 * 0.7 / 200)
    assert m.per_run(y, runs, "worst").mean() - 0.3 == pytest.approx(-1.54 * sd, abs=0.004)
    assert m.per_run(y, runs, "crossfit").mean() == pytest.approx(0.3, abs=0.003)


def test_crossfit_of_single_images_is_unknown():
    assert np.isnan(m.per_run([0, 1], [True, False], "crossfit")[0])
    # only class 1 has two halves
    assert m.per_run([0, 1, 1], [False, True, True], "crossfit")[0] == 1


@given(labelled())
def test_resample_keeps_what_was_observed_and_the_pairing(data):
    y, runs = data
    counts, sizes = m.resample(y, runs[[0, 1, 0]], 20, 0)
    observed = m.class_accuracy(y, runs, 11)[:, np.unique(y)]
    np.testing.assert_allclose((counts.sum(-1) / sizes.sum(-1))[0, :2], observed)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert (counts <= sizes).all()


def test_resample_has_the_variance_of_a_plain_bootstrap():
    rng = np.random.default_rng(1)
    y, runs = np.repeat(np.arange(3), 120), rng.random((4, 360)) < 0.7
    runs[1] = runs[0] ^ (rng.random(360) < 0.1)  # a pair that agrees nearly always
    fast = m.evaluate("average", *m.resample(y, runs, 4000, 0))[1:]
    picks = np.concatenate([120 * k + rng.integers(0, 120, (4000, 120)) for k in range(3)], axis=1)
    plain = runs[:, picks].mean(-1)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(plain), atol=4e-5)


def test_a_functional_may_be_a_function_of_the_class_vector():
    runs = np.stack([CLEAN == Y, PGD == Y])
    assert m.per_run(Y, runs, lambda acc: acc[0]).tolist() == [0.75, 0.5]
    with pytest.raises(
        m.MetricError, match="unknown functional 'median'; known: crossfit, average"
    ):
        m.per_run(Y, runs, "median")


def test_confusion_asymmetry_and_destinations():
    matrix = m.confusion(Y, PGD, 4)
    assert matrix.tolist() == [[2, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 2]]
    assert m.asymmetry(matrix)[0].tolist() == [0, 1, 0, 1]
    rows = m.confusion(Y, PGD, 4, normalise=True)
    np.testing.assert_allclose(rows.sum(1), [1, 1, np.nan, 1])
    np.testing.assert_allclose(m.top_share(matrix), [1, 1, np.nan, 0.5])
    np.testing.assert_allclose(m.top_share(matrix, 2)[[0, 3]], 1)
    # a -> d, b -> c
    np.testing.assert_allclose(m.top_share(matrix, 1, chosen_on=np.eye(4)[::-1])[:2], [0, 0])


def test_the_norm_of_the_errors_by_hand():
    """Errors 3/10 and 4/10 in a column: their norm is 5/10; a ring of equal errors: their share."""
    column = np.array([[7, 3, 0], [0, 5, 0], [0, 4, 6]])
    ring = 0.8 * np.eye(3) + 0.2 * np.roll(np.eye(3), 1, 1)
    # two classes that are taken for each other: the larger of the two shares
    pair = np.array([[9.0, 1, 0], [3, 7, 0], [0, 0, 0]])  # the third class is absent
    np.testing.assert_allclose(m.off_diagonal_norm(column), 0.5)
    np.testing.assert_allclose(m.off_diagonal_norm([column, 10 * ring, pair]), [0.5, 0.2, 0.3])
    assert m.off_diagonal_norm(m.confusion(Y, Y, 4, normalise=True)) == 0
    assert m.off_diagonal_norm(np.stack([[column, ring]] * 2)).shape == (2, 2)


@given(labelled(), st.integers(0, 9))
def test_the_norm_of_the_errors_lies_within_its_bounds(data, seed):
    y, _ = data
    pred = np.random.default_rng(seed).integers(0, 11, y.size)
    rows = m.confusion(y, pred, 11, normalise=True)
    errors = np.nan_to_num(1 - np.diag(rows))
    norm = m.off_diagonal_norm(rows)
    assert errors.mean() - 1e-12 <= norm <= np.sqrt(11) * errors.max() + 1e-12


@given(labelled(), st.integers(0, 9))
def test_confusion_counts_every_image_once(data, seed):
    y, _ = data
    pred = np.random.default_rng(seed).integers(0, 11, y.size)
    matrix = m.confusion(y, pred, 11)
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(y, minlength=11))
    np.testing.assert_array_equal(matrix.sum(0), np.bincount(pred, minlength=11))
    assert np.trace(matrix) == (pred == y).sum()


def test_runner_up_is_the_best_wrong_class():
    logits = np.array([[3.0, 1, 2], [3, 1, 2], [0, -1, -2]], np.float16)
    assert m.runner_up(logits, [0, 1, 2]).tolist() == [2, 0, 0]
    assert logits[0, 0] == 3  # the caller's array is left alone


def test_homing_set_wants_clean_correct_images_of_the_class():
    assert m.homing_set(Y, CLEAN, PGD, 0, 1).tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_hazard_on_a_hand_made_table():
    robust, strong = (
        np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], bool),
        np.array([1, 0, 0, 1, 1, 1, 0, 0, 0, 0], bool),
    )
    table = m.hazard(Y, robust, strong, CLASSES).set_index("class")
    assert table.survivors.tolist() == [3, 2, 0, 1]
    np.testing.assert_allclose(table.gain, [0.5, 0, np.nan, 0.25])
    np.testing.assert_allclose(table.hazard, [2 / 3, 0, np.nan, 1])
    np.testing.assert_allclose(table.share_of_gain, [2 / 3, 0, 0, 1 / 3])
    assert table.low["a"] == pytest.approx(m.wilson(2, 3)[0])
    # nothing gained, nothing shared
    assert m.hazard(Y, robust, robust, CLASSES).share_of_gain.isna().all()


vectors = st.lists(st.integers(0, 4), min_size=3, max_size=6)


@settings(deadline=None, max_examples=40)
@given(vectors, st.randoms(use_true_random=False))
def test_spearman_and_its_exact_p_against_scipy(x, random):
    y = random.choices(range(5), k=len(x))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(m.spearman(x, y))
        return
    rho = stats.spearmanr(x, y).statistic
    assert m.spearman(x, y) == pytest.approx(rho)
    every = stats.permutation_test(
        (x,), lambda v: m.spearman(v, y), permutation_type="pairings", n_resamples=np.inf
    )
    expected = np.mean(np.abs(every.null_distribution) >= abs(rho) - 1e-9)
    assert m.permutation_p(x, y) == pytest.approx(expected)


def test_ten_classes_need_a_rho_of_648():
    order = np.arange(10)
    by_rho = {
        round(float(m.spearman(order, p)), 3): p
        for p in map(np.random.default_rng(0).permutation, [10] * 3000)
    }
    assert m.permutation_p(order, by_rho[0.648]) < 0.05 < m.permutation_p(order, by_rho[0.636])
    assert m.permutation_p(order, order) == pytest.approx(2 / 3628800)
    assert m.permutation_p(order, order[::-1]) == pytest.approx(2 / 3628800)


def test_the_exact_test_has_at_most_its_size():
    """All orders of seven classes, grouped by their rho: those with p < .05 are at most 5 %."""
    orders = np.array(list(permutations(range(7))))
    rhos, first, times = np.unique(
        m.spearman(orders, np.arange(7)).round(9), return_index=True, return_counts=True
    )
    p = np.array([m.permutation_p(orders[i], np.arange(7)) for i in first])
    assert times[p < 0.05].sum() / len(orders) == pytest.approx(0.0484, abs=5e-4)
    assert (np.diff(p[rhos > 0]) < 0).all()


def test_many_classes_are_drawn_and_repeatable():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 14))
    assert m.permutation_p(x, y) == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.02)
    assert m.permutation_p(x, y, seed=3) == m.permutation_p(x, y, seed=3)


def test_split_half_tells_signal_from_noise():
    rng, y = np.random.default_rng(0), np.repeat(np.arange(10), 100)
    noise = np.mean([m.split_half(y, rng.random(1000) < 0.5, 20) for _ in range(20)])
    assert abs(noise) < 0.35
    assert m.split_half(y, rng.random(1000) < np.linspace(0.05, 0.95, 10)[y], 50) > 0.97
    truth = np.linspace(0.4, 0.6, 10)[y]
    twice = [
        [m.class_accuracy(y, rng.random(1000) < truth, 10) for _ in range(300)] for _ in range(2)
    ]
    ceiling = np.mean([m.split_half(y, rng.random(1000) < truth, 20) for _ in range(100)])
    assert ceiling == pytest.approx(m.spearman(*twice).mean(), abs=0.1)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: m.class_accuracy([], [], 2), "non-empty 1-D integer"),
        (lambda: m.class_accuracy([0.0, 1.0], [1, 1], 2), "integer array, not float64"),
        (
            lambda: m.class_accuracy([0, 2], [True, True], 2),
            "labels must lie between 0 and 1, not between 0 and 2",
        ),
        (lambda: m.class_accuracy([0, -1], [True, True], 2), "not between -1 and 0"),
        (lambda: m.confusion([0, 1], [0, 5], 2), "not between 0 and 5"),
        (lambda: m.robust_correct(Y, CLEAN, PGD[:-1]), r"10 labels but an array of shape \(9,\)"),
        (lambda: m.summary(Y, CLEAN[:-1], {}, CLASSES), "10 labels but an array"),
        (lambda: m.outcomes(Y, CLEAN, {"union": PGD}), "may not be called 'union'"),
        (lambda: m.per_run(Y, PGD, "worst"), "correctness must be bool, not int64"),
        (lambda: m.hazard(Y, PGD, CW, CLASSES), "correctness must be bool"),
    ],
)
def test_bad_input_gets_one_clear_line(call, line):
    with pytest.raises(m.MetricError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_one_class_and_no_attack():
    table = m.summary([0, 0], [0, 0], {}, ["only"])
    assert isinstance(table, pd.DataFrame)
    assert table.robust_acc.tolist() == [1.0]
    row = m.totals([0, 0], [0, 0], {}).iloc[0]
    assert (row.average, row.worst, row.gap, row.crossfit) == (1, 1, 0, 1)
