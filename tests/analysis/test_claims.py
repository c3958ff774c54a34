import json
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crat.analysis import claims as c

TIES, CLEAR = np.full(10, 0.3), np.r_[0.3, np.full(9, 0.6)]
SLOPE = np.linspace(0.35, 0.85, 10)


def claim(functional="average", **options):
    return c.Claim("Tian et al. 2021", "abstract", "A is better than B", functional, **options)


@pytest.mark.parametrize(
    ("low", "high", "p", "greater", "less"),
    [
        (0.005, 0.05, 0.01, "supported", "reversed"),
        (-0.05, -0.005, 0.01, "reversed", "supported"),
        (-0.005, 0.008, 0.6, "no effect", "no effect"),
        # certain, but smaller than what matters: that rule comes first
        (0.001, 0.008, 0.01, "no effect", "no effect"),
        # the interval alone does not do, the corrected p must agree
        (0.001, 0.050, 0.20, "undecided", "undecided"),
        (-0.005, 0.05, 0.01, "undecided", "undecided"),
        (-0.02, 0.005, 0.3, "undecided", "undecided"),
        (nan, nan, nan, "undecided", "undecided"),
    ],
)
def test_the_rules_of_a_verdict(low, high, p, greater, less):
    estimate = c.Estimate((low + high) / 2, low, high, p, low90=low, high90=high)
    assert c.decide(claim(direction="greater"), estimate).verdict == greater
    assert c.decide(claim(direction="less"), estimate).verdict == less
    assert c.decide(claim(), None).verdict == "not run"


def test_equivalence_is_two_one_sided_tests_at_five_percent():
    """The interval of 90 % decides, where that of 95 % still reaches beyond what matters."""
    estimate = c.Estimate(0.0, -0.011, 0.011, 1.0, low90=-0.009, high90=0.009)
    assert c.decide(claim(), estimate).verdict == "no effect"
    wide = c.Estimate(0.0, -0.013, 0.013, 1.0, low90=-0.011, high90=0.011)
    assert c.decide(claim(), wide).verdict == "undecided"


def test_a_floor_decides_nothing():
    certain = c.Estimate(0.02, 0.01, 0.03, 1e-6, "floor", low90=0.012, high90=0.028)
    (settled,) = c.settle([c.decide(claim(), certain)])
    assert (settled.verdict, np.isnan(settled.p_adjusted)) == ("undecided", True)
    (row,) = c.claims_table([settled]).itertuples()
    assert c.ours(row).endswith("both at the floor")
    assert not row.price


def test_claims_declare_what_they_need():
    assert claim().smallest_difference == 0.01
    assert claim("worst").smallest_difference == 0.02
    with pytest.raises(c.ClaimError, match="'tail' needs a smallest_difference"):
        claim("tail")
    with pytest.raises(c.ClaimError, match="direction must be 'greater' or 'less', not 'up'"):
        claim(direction="up")
    with pytest.raises(c.ClaimError, match="must be \"paper's setting\" or 'other setting'"):
        claim(setting="ours")
    with pytest.raises(c.ClaimError, match="role must be 'primary' or 'exploratory', not 'main'"):
        claim(role="main")


def test_holm_against_a_worked_example():
    np.testing.assert_allclose(
        c.holm([0.01, 0.04, 0.03, nan, 0.005]), [0.03, 0.06, 0.06, nan, 0.02]
    )
    assert c.holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_plain_p_and_bonferroni(p):
    adjusted, p = c.holm(p), np.array(p)
    assert ((adjusted >= p) & (adjusted <= np.minimum(1, p.size * p) + 1e-12)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_benjamini_hochberg_against_a_worked_example():
    np.testing.assert_allclose(
        c.benjamini_hochberg([0.01, 0.04, 0.03, nan, 0.005]), [0.02, 0.04, 0.04, nan, 0.02]
    )
    assert c.benjamini_hochberg([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_benjamini_hochberg_lies_between_the_plain_p_and_holm(p):
    adjusted, p = c.benjamini_hochberg(p), np.array(p)
    assert ((adjusted >= p - 1e-12) & (adjusted <= c.holm(p) + 1e-12)).all()


def test_a_borderline_claim_is_lost_among_the_primary_ones_of_its_paper():
    close = c.Estimate(0.03, 0.001, 0.06, 0.04)
    papers = ("one", "two", "two", "two")
    several = [c.decide(replace(claim(), paper=paper), close) for paper in papers]
    nothing = [
        c.decide(replace(claim(), paper="one"), e)
        for e in (None, c.Estimate(0.1, 0.05, 0.15, 0.03, "checkpoints"))
    ]
    settled = c.settle(several + nothing)
    assert [v.verdict for v in settled] == ["supported", *["undecided"] * 3, "not run", "undecided"]
    assert settled[0].p_adjusted == 0.04
    assert [v.verdict for v in c.settle(settled)] == [v.verdict for v in settled]


def test_exploratory_claims_are_corrected_by_notebook_and_apart_from_the_primary_ones():
    close = c.Estimate(0.03, 0.001, 0.06, 0.04)
    asked = [claim(role="exploratory", family="01") for _ in range(3)]
    settled = c.settle([c.decide(one, close) for one in [*asked, claim()]])
    # three equal p stay as they are by Benjamini-Hochberg, and Holm has one primary claim
    assert [v.p_adjusted for v in settled] == [0.04] * 4
    other = c.decide(claim(role="exploratory", family="02"), c.Estimate(0, -1, 1, 0.9))
    assert c.settle([*settled, other])[0].p_adjusted == 0.04


def test_each_data_set_is_a_family_of_its_own():
    close = c.Estimate(0.03, 0.001, 0.06, 0.04)
    settled = c.settle([c.decide(claim(dataset=d), close) for d in ("", "mnist", "cifar10")])
    assert [v.verdict for v in settled] == ["supported"] * 3


def test_a_look_has_its_price():
    """Where seeds may be added after a look, each look is at 2 %."""
    found = c.Estimate(0.03, 0.001, 0.06, 0.03)
    once, thrice = c.settle([c.decide(claim(looks=n), found) for n in (1,)]) + c.settle(
        [c.decide(claim(looks=3), found)]
    )
    assert (once.verdict, thrice.verdict) == ("supported", "undecided")
    assert thrice.p_adjusted == pytest.approx(0.03 * 0.05 / 0.02)


def test_the_price_of_an_undecided_claim():
    """Two points, the seeds' sd 2 points a run: found with probability .8 by the seeds named."""
    noise = {"seeds": 3, "seed_df": 8.0, "image_variance": 1e-6}
    found = c.Estimate(0.02, -0.02, 0.06, 0.3, seed_variance=2 * 0.02**2 / 3, **noise)
    (row,) = c.claims_table([c.decide(claim(), found)]).itertuples()
    assert row.price.endswith(" seeds")
    seeds = int(row.price.split()[0])
    assert 14 <= seeds <= 18  # two-sample t test, 5 %, power .8: 17 runs with the usual df
    assert c.ours(row).endswith(f"; {row.price} would decide")
    # where the images are the noise, seeds alone do not do
    images = replace(found, seed_variance=1e-6, image_variance=1e-4)
    assert c.price(c.decide(claim(), images)) == "4 seeds and 2 times the images"
    lost = replace(found, value=0.0, seed_variance=1.0)
    assert c.price(c.decide(claim(), lost)) == "over 30 seeds and 16 times the images"
    assert c.price(c.decide(claim("worst"), c.Estimate(0.1, -0.1, 0.3, 0.3, "correlation"))) == ""


def test_a_price_pays_for_the_family_and_the_looks():
    """A row whose corrected p has been cut at 1 costs what the next decided row would."""
    noise = {"seeds": 3, "seed_df": 8.0, "image_variance": 1e-6, "seed_variance": 1e-4}
    lost = [c.Estimate(0.02, -0.02, 0.06, p, **noise) for p in (0.5, 0.7, 0.9)]
    sure = c.Estimate(0.05, 0.04, 0.06, 0.001, **noise)
    settled = c.settle([c.decide(claim(), found) for found in (*lost, sure)])
    assert [v.p_adjusted for v in settled[:3]] == [1, 1, 1]
    assert [v.correction for v in settled] == [3, 3, 3, 3]  # Holm: three of four are left

    alone = c.settle([c.decide(claim(), lost[0])])[0]
    looked_at = c.settle([c.decide(claim(looks=3), lost[0])])[0]
    assert (alone.correction, looked_at.correction) == pytest.approx((1, 2.5))
    seeds = [int(c.price(v).split()[0]) for v in (alone, looked_at, settled[0])]
    assert seeds == [7, 9, 9]

    questions = [c.decide(claim(role="exploratory"), found) for found in (*lost, sure)]
    assert [v.correction for v in c.settle(questions)] == [2, 2, 2, 2]  # four tests, one decided


def test_a_row_is_written_alike_before_and_after_json(tmp_path):
    verdict = c.decide(claim(), c.Estimate(-0.0215, -0.0305, 0.0125 - 0.025, 0.01))
    c.write([verdict], tmp_path / "claims.json")
    assert c.markdown(c.read(tmp_path / "claims.json")) == c.markdown(c.claims_table([verdict]))


def test_a_published_mean_is_met_only_in_its_own_setting():
    found = c.against_published([0.26, 0.24, 0.25], mean=0.217, sd=0.01)
    assert found.value == pytest.approx(0.033)
    assert found.high - found.value == pytest.approx(
        2.776 * 0.01 * np.sqrt(1 / 3 + 1 / 5), rel=1e-3
    )
    assert c.decide(claim("worst", setting=c.SETTINGS[0]), found).verdict == "supported"
    with pytest.raises(c.ClaimError, match="only be compared in the paper's setting"):
        c.decide(claim("worst"), found)


def test_the_table_goes_to_json_and_back(tmp_path):
    verdicts = [
        c.decide(
            claim(number="+3.0", setting=c.SETTINGS[0]),
            c.Estimate(0.031, 0.01, 0.052, 0.001, detectable=0.02),
        ),
        c.decide(claim("worst"), c.Estimate(0.01, -0.03, 0.05, 0.6, detectable=0.07, df=inf)),
        c.decide(
            claim("rank correlation", smallest_difference=0.2),
            c.Estimate(0.9, 0.5, 1.0, 0.0004, "correlation"),
        ),
        c.decide(c.Claim("B|C", "Tab. 1", "two | bars", "average"), None),
    ]
    c.write(verdicts, tmp_path / "claims.json")
    # no NaN, no Infinity
    json.loads((tmp_path / "claims.json").read_text(), parse_constant=pytest.fail)
    table, written = c.claims_table(verdicts), c.read(tmp_path / "claims.json")
    assert written.verdict.tolist() == ["supported", "undecided", "supported", "not run"]
    np.testing.assert_allclose(written[c.NUMBERS], table[c.NUMBERS].replace(inf, nan))
    assert table.p_adjusted.tolist()[:3] == [0.002, 0.6, pytest.approx(0.0012)]
    text = c.markdown(written)
    assert "| +3.0 | +3.1 [1.0, 5.2] points | supported (paper's setting) |" in text
    assert "| - | +1.0 [-3.0, 5.0] points, detectable 7.0 | undecided |" in text
    assert "+0.900 [0.500, 1.000] |" in text
    assert "two \\| bars (B\\|C, Tab. 1) | - | - | not run" in text
    assert [path.name for path in tmp_path.iterdir()] == ["claims.json"]


def test_the_table_unfolds_by_role_with_its_verdicts_counted():
    found = c.Estimate(0.031, 0.01, 0.052, 0.001)
    asked = [
        claim("average"),
        claim("worst", role="exploratory"),
        claim("spread", smallest_difference=0.01, role="exploratory"),
    ]
    text = c.folded(c.claims_table([c.decide(each, found) for each in asked]))
    primary, exploratory = text.split("</details>")[:2]
    assert "<details open><summary><b>Primary claims</b>: 1 supported</summary>" in primary
    assert "<details><summary><b>Exploratory claims</b>: 2 supported</summary>" in exploratory
    assert primary.count("\n| ") == 2  # the header and one claim
    assert exploratory.count("\n| ") == 3


@pytest.mark.parametrize("content", ["[{", "[]", '[{"paper": "x"}]', None])
def test_a_damaged_table_is_one_clear_line(tmp_path, content):
    path = tmp_path / "claims.json"
    if content:
        path.write_text(content)
    with pytest.raises(c.ClaimError, match="run its notebook again") as caught:
        c.read(path)
    assert "\n" not in str(caught.value)
