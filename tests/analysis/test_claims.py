import json
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
        (0.001, 0.008, 0.01, "supported", "reversed"),  # small, but beyond 0: that rule comes first
        (0.001, 0.008, 0.20, "no effect", "no effect"),
        # the interval alone does not do, Holm's p must agree
        (0.001, 0.050, 0.20, "undecided", "undecided"),
        (-0.005, 0.05, 0.01, "undecided", "undecided"),
        (-0.02, 0.005, 0.3, "undecided", "undecided"),
        (nan, nan, nan, "undecided", "undecided"),
    ],
)
def test_the_rules_of_a_verdict(low, high, p, greater, less):
    estimate = c.Estimate((low + high) / 2, low, high, p)
    assert c.decide(claim(direction="greater"), estimate).verdict == greater
    assert c.decide(claim(direction="less"), estimate).verdict == less
    assert c.decide(claim(), None).verdict == "not run"


def test_claims_declare_what_they_need():
    assert claim().smallest_difference == 0.01
    assert claim("worst").smallest_difference == 0.02
    with pytest.raises(c.ClaimError, match="'tail' needs a smallest_difference"):
        claim("tail")
    with pytest.raises(c.ClaimError, match="direction must be 'greater' or 'less', not 'up'"):
        claim(direction="up")
    with pytest.raises(c.ClaimError, match="must be \"paper's setting\" or 'other setting'"):
        claim(setting="ours")


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


def test_a_borderline_claim_is_lost_in_a_large_family():
    close = c.Estimate(0.03, 0.001, 0.06, 0.04)
    several = [c.decide(claim(family=f), close) for f in ("one", "two", "two", "two")]
    nothing = [
        c.decide(claim(family="one"), e)
        for e in (None, c.Estimate(0.1, 0.05, 0.15, 0.03, "checkpoints"))
    ]
    settled = c.settle(several + nothing)
    assert [v.verdict for v in settled] == ["supported", *["undecided"] * 3, "not run", "undecided"]
    assert settled[0].p_holm == 0.04
    assert [v.verdict for v in c.settle(settled)] == [v.verdict for v in settled]


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
    assert table.p_holm.tolist()[:3] == [0.002, 0.6, pytest.approx(0.0012)]
    text = c.markdown(written)
    assert "| +3.0 | +3.1 [1.0, 5.2] points | supported | paper's setting |" in text
    assert "| - | +1.0 [-3.0, 5.0] points, detectable 7.0 | undecided | other setting |" in text
    assert "+0.900 [0.500, 1.000] |" in text
    assert "two \\| bars (B\\|C, Tab. 1) | - | - | not run" in text
    assert [path.name for path in tmp_path.iterdir()] == ["claims.json"]


@pytest.mark.parametrize("content", ["[{", "[]", '[{"paper": "x"}]', None])
def test_a_damaged_table_is_one_clear_line(tmp_path, content):
    path = tmp_path / "claims.json"
    if content:
        path.write_text(content)
    with pytest.raises(c.ClaimError, match="run its notebook again") as caught:
        c.read(path)
    assert "\n" not in str(caught.value)
