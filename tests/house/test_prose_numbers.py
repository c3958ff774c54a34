"""Every number in the prose of README and notebooks that speaks of results is one of the results.

A number counts where a unit follows it (points, %, rows, times, "in a hundred", "N of M") or it
has decimals. Rounded as it is written, it must be among the values that EVIDENCE has for a thing
that its sentence names. Else it is a PARAMETER, or its words stand in NO_RESULT: parameters,
papers' numbers, theory, live runs.
"""

import functools
import json
import re

import numpy as np
import prose_answers as answers
import prose_beyond as beyond
import prose_data_sets as data_sets
import prose_evidence as results
import prose_fast as fast
import prose_methods as since
import prose_tail as tail
import pytest
from prose_evidence import ROOT, claim, claims, csv, percent, printed, table

ONES = "zero one two three four five six seven eight nine ten eleven twelve"
TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty twenty-one twenty-two"
WORDS = f"{ONES} {TEENS}".split()
HALVES = {"half a": 0.5, "three quarters of a": 0.75}
SPELLED = "|".join(sorted(WORDS, key=len, reverse=True))
NUMBER = (
    r"(?:[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?![\w^])"
    rf"|(?:{'|'.join(HALVES)}|(?:{SPELLED})(?: and a half)?)(?![\w-]))"
)
JOINT = r"(?:, | and | to | or |, and | against )"
UNIT = (
    rf"(?:\s?%| (?:points?|rows?|%|in a hundred|in a thousand|of a thousand|times)\b| of {NUMBER})"
)
COUNTED = re.compile(rf"(?<![\w.,/-])({NUMBER}(?:{JOINT}{NUMBER})*)({UNIT})", re.IGNORECASE)
DECIMAL = re.compile(r"(?<![\w.,/-])[-+]?\d*\.\d+(?!\w|\.\d|\^)")
NOT_PROSE = r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|arXiv\s+\d{4}\.\d{5}"


def sentences(name):
    """The sentences of README.md or of a notebook, without formulae, code, tables and headings."""
    if name == "README":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        yield from plain(
            re.sub(r"```.*?```|<!-- (\w+) -->.*?<!-- /\1 -->", "", readme, flags=re.DOTALL)
        )
        return
    (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            yield from plain("".join(cell["source"]))


def plain(markdown):
    text = re.sub(r"(?m)^\|.*$|^#.*$", "", markdown)
    text = re.sub(NOT_PROSE, " ⋯ ", text, flags=re.DOTALL).replace("*", "")
    return re.split(r"(?<=[.!?])\s+(?=[^a-z\s])", re.sub(r"\s+", " ", text))


def numbers_of(sentence):
    """The numbers of a sentence that have a unit or decimals, as they are written."""
    found = {}
    for match in COUNTED.finditer(sentence):
        for part in re.finditer(NUMBER, match[0], re.IGNORECASE):
            found[match.start() + part.start()] = part[0]
    for match in DECIMAL.finditer(sentence):
        found[match.start()] = match[0]
    return [found[place] for place in sorted(found)]


def read(number):
    """Its value without a sign, and half the unit of its last digit."""
    text = number.lower().lstrip("+-").replace(",", "")
    if text in HALVES:
        return HALVES[text], 0.25
    word, half, _ = text.partition(" and a half")
    if word in WORDS:
        return WORDS.index(word) + 0.5 * bool(half), 0.25 if half else 0.45
    return float(text), 0.5 * 10.0 ** -len(text.partition(".")[2])


def agrees(number, values):
    value, unit = read(number)
    return bool((np.abs(np.abs(np.asarray(values, float)) - value) <= unit + 1e-9).any())


# notebook: (what a sentence names, the values that results have for it)
EVIDENCE = {
    "README": [],  # its results stand in blocks that are generated (test_readme)
    "00": [],
    "01": [
        ("jumps", results.jumps),
        ("differ|last step", lambda: [claim("01", "apart under attack than on")[0]]),
        ("differ|last step", lambda: [printed("01", "PGD-AT PGD-20 ")[-2]]),
        ("trousers|shoes|tops", lambda: percent("01", "superclasses", "robust_acc")),
        ("retraining|saves", results.removed),
        ("survives? PGD", lambda: percent("01", "stronger_attack", "hazard", panel="PGD-AT")[6:7]),
        ("lift the shirt", lambda: table("01", "lifts", "method").loc["Shirt"]),
        ("lose", results.who_pays),
        (
            "weaker one: it leaves",
            lambda: [printed("01", rf"{a} \d\d\.\d ±")[-2] for a in ("PGD-20", "T-PGD", "falling")],
        ),
        ("confidences are flat", lambda: claim("01", "breaks more", "MART")[:1]),
        ("weight grows", results.lift_weights),
        ("average falls", results.lifted_average),
        ("lifted by", lambda: claim("01", "lifts the most", "training")[:2]),
        ("end in the two classes", results.in_two_classes),
        ("superclass", results.in_superclass),
        *data_sets.TIAN,
    ],
    "02": [
        ("weakest classes", results.broken_by_autoattack),
        ("takes up to", lambda: printed("02", "what AutoAttack takes")[1:2]),
        ("FAB-T", lambda: printed("02", r"\{'survived'")[2:4] / (30, 3)),
        ("Of the 9", lambda: beyond.bracket(0.1, 9)),
        ("zeros", beyond.proven_gap),
    ],
    "03": [
        ("loss of", lambda: printed("03", "released .* -0")[-1:]),
        ("clean runner-up|Under CW", results.runner_up),
        (
            "errors on clean images",
            lambda: percent("03", "where_attacks_end", "share", panel="errors", row="AT"),
        ),
        (
            "confuser",
            lambda: percent("03", "where_attacks_end", "share", panel="broken", row="AT")[2:],
        ),
        (
            "In the undefended network",
            lambda: percent("03", "where_attacks_end", "share", panel="broken", row="undefended")[
                :2
            ],
        ),
        ("first error", results.first_error),
        ("all pullovers", results.pullovers),
        (
            "broken pullovers",
            lambda: percent("03", "hard_pairs", "share", panel="of the broken", row="Pullover"),
        ),
        ("pullovers to shirt", lambda: printed("03", "Shirt [0-9.]+ [0-9.]+ [0-9.]+ [0-9.]+$")[:1]),
        (
            "its T-shirts",
            lambda: percent(
                "03", "hard_pairs", "share", panel="of all", row="T-shirt", series="undef"
            ),
        ),
        (
            "in every column|less robust than AT and TRADES",
            lambda: [
                claim("03", "SPAT is more robust than AT", how, "PGD and CW")[0]
                for how in ("average", "worst")
            ],
        ),
        ("CW breaks", results.white_box),
        ("SPAT keeps", results.transfer),
        ("linear head", results.terms),
        ("keeps", lambda: [answers.undefended(), results.terms_without_squares()]),
        ("detached|points stay", results.forms),
        ("best of the three scales", results.scales),
        ("every row", results.every_row),
        ("trades clean", lambda: printed("03", "beta (1|12) ")[[3, 7]]),
        (
            "span",
            lambda: [
                np.ptp(percent("03", "ablation", "share", panel="average", row="L_sp + L_hcp"))
            ],
        ),
        ("median|lie below", results.medians),
        ("overstated", lambda: [*percent("03", "temperature", "worst", temperature=0.2)]),
        ("overstated", lambda: [*percent("03", "temperature", "worst", temperature=8)]),
        ("overstates|linear head would", lambda: [claim("03", "its test on unscaled")[0]]),
        ("ahead of SPAT", lambda: [claim("03", "robust: SPAT", "average")[0]]),
        (
            "missing",
            lambda: 100 - percent("03", "where_attacks_end", "share", panel="broken", row="AT")[:1],
        ),
    ],
    "04": [
        ("What came out", results.on_trades),
        ("optimum", lambda: printed("04", "(clean|ε = 0.2) [+-]1")),
        ("beyond the border", lambda: printed("04", r"0\.2 \d")[1:2]),
        ("stronger attack", results.toy_under_attack),
        ("feature from", lambda: printed("04", "infinite from")),
        ("on average|five points", results.main_table),
        ("fourfold", results.groups_and_shirt),
        ("judging margin", results.beyond),
        ("from 1 to|never leaves", results.by_beta),
        ("moves|smooths", results.swings),
        ("plain AT|CCR's", results.parts),
        ("On three seeds|weight of the regulariser", results.of_three_seeds),
        *data_sets.WEI,
        ("mean margin", results.lambda_1),
        ("where the mean margin", lambda: claim("04", "mean margin")[:1]),
        ("β of its own", results.lambda_2),
        ("weaker one", lambda: printed("04", "Shirt 0")[:1]),
        (
            "over updates lowers",
            lambda: [claim("04", f"lifts {m} in the worst")[0] for m in ("AT", "TRADES")],
        ),
        (
            "better worst class than its base|on average CFA on AT",
            lambda: [claim("04", "CFA on AT is above AT+EMA", f)[0] for f in ("worst", "average")],
        ),
        ("gap under attack|it parts them", lambda: claim("04", "beyond the judging one")[:1]),
        ("the curves part|first step to the last", results.few_images),
        ("as a whole|below TRADES", results.cfa_on_trades),
        ("gains", lambda: results.against_ema("04", "classes", "CFA (AT)", "Shirt")),
        ("gains", lambda: results.against_ema("04", "classes", "CFA (TRADES)", "Shirt", "Sandal")),
    ],
    "05": [
        (
            "Adv. is",
            lambda: [
                claim("05", f"from the start is more {how} than Adv {on}")[0]
                for how, on in results.ADV
            ],
        ),
        ("half clean", lambda: printed("05", "half clean [1-9]")[:1]),
        ("hardest classes", results.hardest),
        (
            "spread shrinks|grows by",
            lambda: [printed("05", f"{under}: the papers")[-4] for under in ("clean", "PGD-20")],
        ),
        ("widens", lambda: [printed("05", f"main {name} clean")[0] for name in ("base", "Adv")]),
        ("mCE", lambda: results.mean_errors("Adv", "Adv+", "half clean")[1::2]),
        ("five other kinds", lambda: results.mean_errors("base", "LA")[::2]),
        ("severity|bag", answers.brightened),
        ("accuracy falls|apart on clean", results.deltas),
        ("as accurate", lambda: [claim("05", "more accurate on clean", "half-clean")[0]]),
        ("weaker defence", lambda: [*answers.tuned("Adv", 4, 6), answers.scratch("Adv", "PGD-20")]),
        ("a wider one|fine-tuned as in", lambda: answers.tuned_gains("average")),
        ("ahead on both", lambda: answers.tuned_gains("worst")),
        ("lose most on the shirt", answers.tuned_shirts),
        ("mostly the shirt's", answers.tuned_classes),
        ("narrows the gap|are reversed", answers.tuned_rows),
    ],
    "06": [
        ("worst class|leave the others", lambda: results.methods("worst")),
        ("on average and", lambda: results.methods("average")),
        (
            "coincide",
            lambda: 100 * csv("06", "frontier").groupby("method").worst.std()[["AT", "AT+EMA"]],
        ),
        ("lucky shirt", results.lucky_epoch),
        (
            "shirt gains|T-shirt loses",
            lambda: results.against_ema("06", "classes", "WAT+EMA", "Shirt", "T-shirt/top"),
        ),
        (
            "shirt gains|T-shirt loses",
            lambda: results.against_ema("06", "classes", "FRL+EMA", "Shirt", "T-shirt/top"),
        ),
        (
            "four together",
            lambda: (
                table("06", "classes", "method")
                .loc[results.TOPS]
                .mean()[["AT+EMA", "WAT+EMA", "FRL+EMA"]]
            ),
        ),
        ("margins follow", lambda: results.last_policy("CFA", "eps", "Shirt", "Bag")),
        ("other way", lambda: results.last_policy("WAT", "weight", "Shirt", "Ankle boot")),
        ("Ten numbers", lambda: printed("06", "gap: .*->")[[0, 2]]),
        (
            "WAT is further|added to the logits",
            lambda: [results.methods("worst")["WAT+EMA"], printed("06", "worst: .*->")[2]],
        ),
        ("claim itself", lambda: claim("06", "at inference")),
        ("each reports first", results.between_papers),
        ("uniform distribution", lambda: results.shares_at(0.25)),
        ("doubles|the bargain", results.coefficient),
        ("ten numbers", answers.biased),
        ("three seeds confirm|CODAT lifts", lambda: claim("06", "worst distribution")[:1]),
        ("lift the worst class|FAT is more", results.purposes),
        (
            "CFOL's shirt",
            lambda: results.against_ema("06", "classes", "CFOL+EMA", "Shirt", "T-shirt/top"),
        ),
        (
            "CFOL's shirt",
            lambda: [table("06", "classes", "method").loc[results.TOPS].mean()["CFOL+EMA"]],
        ),
        ("CFOL\\+EMA has", lambda: results.methods("average")),
        ("CFOL lifts the worst", lambda: claim("06", "CFOL")),
        ("CSR lifts", lambda: claim("06", "CSR is more robust")),
        *since.SINCE,
        *data_sets.ALL,
    ],
    "07": [
        ("rows are supported; the", lambda: [claims("07").verdict.eq("supported").sum()]),
        ("errors of A", results.toy_push),
        ("errors of A", lambda: [results.toy_push()[1:].mean()]),
        ("both reach", lambda: results.toy_push()[1:2]),
        ("little is left", results.live_fooled),
        (
            "Under one perturbation the|never saw",
            lambda: [*results.kept("one for all"), *results.clean_cost()],
        ),
        ("the trainings part", lambda: results.kept("one a class")),
        ("its worst class keeps", answers.universal_worst),
        (
            "fools 86|of the T-shirts",
            lambda: percent("07", "fooled", "fooled", method="one for all")[:2],
        ),
        ("answered", results.into_shirt),
        (
            "gains, from",
            lambda: percent("07", "confusion", "share", true="Shirt", predicted="Shirt"),
        ),
        ("mean move", lambda: printed("07", "standard, seed 0 ")[7:8]),
        ("constant vector", lambda: results.biases("standard")),
        ("smaller such move", lambda: [printed("07", "universal AT, seed 0 ")[2]]),
        (
            "there is none",
            lambda: [
                printed("07", "AT, seed 0 ")[1:].max(),
                results.biases("class-wise universal AT")[-1],
            ],
        ),
        ("there is none", lambda: [results.biases("AT")[-1]]),
        ("the shirt keeps", results.gained_classes),
        ("Elsewhere at most", answers.parted),
        ("helps more", answers.class_wise_rows),
        ("Clean accuracy is", lambda: [claim("07", "accurate on clean")[0]]),
        ("right there", lambda: results.kept("PGD-20")[1:]),
        ("two passes", lambda: [results.training("class-wise universal AT", "PGD-20", 2)]),
        ("fooled on", lambda: percent("07", "transfer", "fooled", judged="standard")[[0, 4]]),
        ("Its own, in turn", results.travelled),
        (
            "perturbation fools more",
            lambda: percent("07", "transfer", "fooled", judged="universal AT")[[0, 1, 4]],
        ),
        (
            "clean images \\(13|undefended network",
            lambda: claim("07", "undefended network, sd")[1:],
        ),
        ("undefended network", lambda: claim("07", "three classes")[1:]),
    ],
    "08": tail.EVIDENCE,
    "09": beyond.EVIDENCE,
    "10": fast.EVIDENCE,
}
for name in EVIDENCE.keys() - {"README"}:
    EVIDENCE[name].append((r"\brows?\b", functools.partial(results.verdicts, name)))

# a parameter with its value, and the level of an interval
PARAMETER = (
    r"(?<!\w)(?:eps|[εηλρδTβ][₁₂]?)(?: =| of)? ?\d*\.?\d+|(?:whiskers|Wilson's) (?:are )?95 %"
)
# further parameters, papers' numbers, theory, live runs, and words that only look like a result
NO_RESULT = {
    "README": ["downloads 2.7 GB"],
    "00": ["0.1 for grey", "95 % (Wilson)", "worst 20 %, 30 % where"],
    "01": [
        "Ten points are few",
        "Ten points of one data set",
        "below the one point",
        "three times as many",
        "at most two points",
        "held to 2 % at",
    ],
    "03": [
        "over 40 % of the dogs",
        "30.6 % by SPAT",
        "(ten points there",
        "one of nine",
        "sign at .6",
        "towards .6",
        "pass .6",
        "nearer to .6",
        ".7 when clean",
        ".2 when clean",
        "the .2 it had",
        "about .4 they",
        "weight 1.2",
        "at 1.2 of KL",
        "held to 2 % at",
    ],
    "04": [
        "and 1.3 shows",
        "attack of 0.2",
        "decay of 0.85",
        "0.85^(200/12) = 0.07",
        "0.4 to 1.6 times the ε",
        "difference between two rows",
        "one row stands out",
        "for 14 of its 200",
        "decay of 0.5: the paper's 0.85",
        "38 % of the first weights",
        "From 0.3 to 0.7 the mean",
        "the paper's 0.5",
    ],
    "05": [
        "The first rate, 0.05",
        "53.50 % more robustness",
        "5.73 % less imbalance",
        "(25.24, 65.23 %)",
        "(54.19, 27.93 %)",
        "(reported: 54 and 28 %)",
        "error of 25 % it is 6.1 points",
        "abstract: 5.7 %",
        "paper's shrinks by 2.8 %",
        "gives 1.23 and 1.14",
        "(+ 0.2 and + 0.3, two and three times ε)",
        "below 100 %",
        "size (0.0125)",
        "eight times the strength",
        "from 0.05 to 0.4",
        "At 0.1",
        "LA one point apart",
        "two rows on the spread",
        "three rows on the extra",
    ],
    "06": [
        "constant rate of 0.001",
        "seven times smaller than",
        "weight above 2.5",
        "at most two points",
        "(7, 9 and 4.5 points there)",
        "from 0.89 to 0.75",
        "from 0.37 to 0.53",
    ],
    "07": [
        "At 1.5 the errors",
        "held to 2 % instead of 5 %",
        "10 and 26 points, with intervals three times",  # of three seeds at the chosen epoch
    ],
    "08": ["in 0.5, 1, 1.5"],
    "09": beyond.NO_RESULT,
    "10": fast.NO_RESULT,
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_numbers_in_prose_are_those_of_the_results(name):
    unheld = []
    for sentence in sentences(name):
        rest = re.sub(PARAMETER, " ⋯ ", sentence)
        for words in NO_RESULT.get(name, ()):
            rest = rest.replace(words, " ⋯ ")
        rows = [
            values for thing, values in EVIDENCE[name] if re.search(thing, sentence, re.IGNORECASE)
        ]
        for number in numbers_of(rest):
            if not any(agrees(number, values()) for values in rows):
                unheld.append(f"{number!r} in: {sentence}")
    assert not unheld, f"{name}, numbers without a result:\n" + "\n".join(unheld)
