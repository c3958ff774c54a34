"""The values of results/ and figures/laptop that the prose of the notebooks may name.

A value comes from a figure's CSV, from claims.csv, or from the output of the committed notebook,
which nbval holds to the results. Accuracies are in percent, their differences in points.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

import crat

ROOT = Path(crat.__file__).resolve().parents[1]


@functools.cache
def csv(folder, name):
    (path,) = (ROOT / "figures" / "laptop").glob(f"{folder}_*/{name}.csv")
    return pd.read_csv(path)


@functools.cache
def claims(name):
    table = pd.read_csv(ROOT / "figures" / "laptop" / "claims.csv")
    return table[table.notebook.str.startswith(name)]


ELSEWHERE = ", on (?:MNIST|CIFAR-10)$"  # the end of a claim that another data set decides


def claim(name, *words):
    """Estimate and interval, in points, of the only claim that was run and has these words.

    A claim on another data set than the notebook's must be named: ", on MNIST".
    """
    rows = claims(name)
    rows = rows[rows.verdict != "not run"]
    if not any(word.startswith(", on ") for word in words):
        rows = rows[~rows.claim.str.contains(ELSEWHERE)]
    for word in words:
        rows = rows[rows.claim.str.contains(word, regex=False)]
    assert len(rows) == 1, f"{len(rows)} claims of notebook {name} have {words}"
    return 100 * rows[["ours", "low", "high"]].to_numpy(float)[0]


def verdicts(name):
    """Counts of claims: by verdict, decided, with a corrected p, and a reading of ours."""
    rows = claims(name)
    read_as = rows["where"].str.contains("read as").sum()
    decided = rows.verdict.isin(["supported", "reversed", "no effect"]).sum()
    return [*rows.verdict.value_counts(), decided, rows.p_adjusted.count(), read_as]


@functools.cache
def printed(name, pattern):
    """The numbers in those printed lines of the committed notebook that the pattern begins."""
    (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    texts = ["".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in outputs]
    lines = [" ".join(line.split()) for text in texts for line in text.splitlines()]
    lines = [line for line in lines if re.match(pattern, line)]
    assert lines, f"notebook {name} prints no line that begins with {pattern!r}"
    return np.array([float(n) for line in lines for n in re.findall(r"\d+(?:\.\d+)?", line)])


def table(name, figure, column, index="class", value="robust_acc"):
    """A figure's CSV as a table of rows `index` by `column`, in percent."""
    return 100 * csv(name, figure).pivot_table(index=index, columns=column, values=value)


def percent(name, figure, value, **where):
    """Percentages of the rows of a figure's CSV whose columns equal, or begin with, `where`."""
    rows = csv(name, figure)
    for column, wanted in where.items():
        of = rows[column]
        rows = rows[
            of.str.startswith(wanted) if isinstance(wanted, str) else np.isclose(of, wanted)
        ]
    assert len(rows), f"{figure}.csv of notebook {name} has no row with {where}"
    return 100 * rows[value].to_numpy(float)


def jumps():
    worst = csv("01", "epochs").groupby(["panel", "epoch"]).robust_acc.min()
    return [100 * worst.groupby("panel").diff().abs().max()]


def removed():
    bars = csv("01", "class_removal")
    of_each_seed = 100 * printed("01", r"(Shirt|Pullover) pgd_at-s\d ")
    return [*bars[bars.part == "keeps its class"].n, *bars.groupby("bar").n.sum(), *of_each_seed]


def who_pays():
    lifts = table("01", "lifts", "method").loc[["T-shirt/top", "Pullover", "Coat", "Dress", "Bag"]]
    return lifts.sub(lifts.AT, axis=0).to_numpy().ravel()


def lifted_average():
    average = table("01", "lifts", "method").mean()
    return average.AT - average


def lift_weights():
    rows = csv("01", "lift_policy")
    return rows[rows.epoch == rows.epoch.max()].value


def in_two_classes():
    """Mean over seeds; notebook 01 prints parts and wholes as two lists of three."""
    lines = [printed("01", f"{attack}: errors in the two")[-6:] for attack in ("PGD-20", "clean")]
    return [100 * np.mean(line[:3] / line[3:]) for line in lines]


def in_superclass():
    # two more numbers follow on these lines: the two percentages
    return [printed("01", f"{attack}: errors inside")[-2] for attack in ("PGD-20", "clean")]


def broken_by_autoattack():
    counts = printed("01", "AutoAttack breaks of")
    return [100 * counts[0] / counts[1], 100 * counts[2] / counts[3]]


def runner_up():
    series = "its clean runner-up"
    own = percent("03", "where_attacks_end", "share", panel="broken", series=series)[1:]
    counts = [printed("03", f"{method}, CW-20")[1:-1] for method in ("AT", "TRADES", "SPAT")]
    cw = [100 * np.mean(row[::2] / row[1::2]) for row in counts]
    return [min(own), max(own), min(cw), max(cw), 100 / 9]


def first_error():
    rows = csv("03", "first_and_last").pivot(index="row", columns="series", values="share")
    return 100 * (rows["first crossing"] - rows["last iterate"])


def pullovers():
    share = percent("03", "hard_pairs", "share", panel="of all", row="Pullover")
    undefended, at, _, spat = share
    return [*share, undefended - spat, undefended - at, at - spat]


def white_box():
    at, spat = printed("03", r"AT [\d.]+ ± "), printed("03", r"SPAT [\d.]+ ± ")
    return [spat[2] - spat[4], at[2] - at[4]]


def transfer():
    """What SPAT keeps under examples of each network."""
    return 100 * csv("03", "transfer").query("judged == 'SPAT'").robust_acc


def averages_of_terms():
    rows = csv("03", "ablation").query("panel == 'average'")
    return 100 * rows.set_index(["row", "series"]).share


def terms():
    """The ablation: what is compared in one sentence."""
    rows = averages_of_terms()
    first, control = rows.xs("seed 0", level="series"), rows["CE + KL"]
    steps = first[["CE + KL", "L_sp + L_hcp"]] - first["L_sp + KL"]
    linear = first["TRADES, linear head"]
    return [linear, *rows["L_sp + L_hcp"], *control, linear - control.mean(), *steps]


def terms_without_squares():
    first = averages_of_terms().xs("seed 0", level="series")
    return first["CE + L_hcp"] - first["CE + n KL"]


def medians():
    """Medians that section 7 of notebook 03 compares, and the quantiles that it names."""
    cosines = [
        printed("03", rf"{re.escape(row)} 0\.\d\d .*")[-5:]
        for row in ("CE + KL", "L_sp + KL", "L_sp alone")
    ]
    held = printed("03", r"CE \+ n KL 0\.\d\d .*")[-1]
    return [*(row[2] for row in cosines), held, 95, printed("03", "detached: cosine")[0]]


def settings(panel):
    return 100 * csv("03", "settings").set_index(["panel", "row"]).share[panel]


def forms():
    average = settings("average")
    detached = average[["form detached", "form circle"]]
    released = average[["as released", "form clamped"]]
    return [detached.mean() - released.mean()]


def scales():
    average = settings("average")
    return (average["as released"] - average[["scale 4", "scale 16", "m 0", "m 0.5"]]).to_list()


def every_row():
    worst = settings("worst class")
    return [worst.min(), worst.max(), 2 * worst.min(), 2 * worst.max(), 200]


def toy_under_attack():
    rows = printed("04", r"0\.[0-3] \d").reshape(4, -1)
    return rows[-1] - rows[0]


def of_three_seeds():
    """What notebook 04 decides on three seeds of its sweeps: margins, β, CCR."""
    asked = ("gap, 1.6 - 0.4", "gap, 6 - 1", "class-wise regularisation alone")
    return [claim("04", words)[0] for words in asked]


def purposes():
    """What notebook 06 decides of the methods that weigh or draw classes, and of FAT."""
    names = ("WAT", "FRL", "DAFA", "FAAL", "CFOL")
    worst = [claim("06", f"{name} is more robust", "worst")[0] for name in names]
    return [*worst, claim("06", "FAT is more accurate")[0]]


def few_images():
    """What AT on 500 images has more on training images, and what each loses on new ones."""
    late = csv("04", "overfitting").query("epoch > 30").groupby(["split", "panel"], sort=False)
    train, valid = (100 * late.accuracy.agg(["max", "last"]).loc[s] for s in ("train", "valid"))
    return [(train["last"] - valid["last"]).iloc[0], *(valid["max"] - valid["last"])]


def cfa_on_trades():
    """CFA on TRADES beside TRADES+EMA in the worst class, and beside both on average."""
    worst = claim("04", "CFA on TRADES is above TRADES+EMA", "worst")[0]
    averages = [
        claim("04", f"CFA on TRADES is above {m} on average")[0] for m in ("TRADES", "TRADES+EMA")
    ]
    return [worst, *averages]


def cfa(name, column):
    """A mean of the main table of notebook 04: clean, worst, then PGD-20's (columns 4 and 6)."""
    return printed("04", rf"{re.escape(name)} [\d.]+ ± .* / ")[column]


def main_table():
    averages = [cfa(name, 4) for name in ("CFA (AT)", "AT", "AT+EMA")]
    return [*averages, cfa("CFA (AT)", 6) - cfa("AT+EMA", 6)]


def on_trades():
    """Worst classes on TRADES, and what CFA costs there on average against TRADES+EMA."""
    worst = [cfa(name, 6) for name in ("CFA (TRADES)", "TRADES", "TRADES+EMA")]
    return [*worst, cfa("TRADES+EMA", 4) - cfa("CFA (TRADES)", 4)]


def by_margin(panel):
    columns = ["class", "group", "acc", "panel", "margin"]
    rows = csv("04", "training_margin").set_axis(columns, axis=1)
    return rows[rows.panel.str.startswith(panel)].assign(acc=100 * rows.acc)


def groups_and_shirt():
    rows = by_margin("clean").query("margin in (0.4, 1.6)")
    groups = rows.groupby(["group", "margin"]).acc.mean()
    return [*groups, *rows[rows["class"] == "Shirt"].acc]


def beyond():
    """Shirt and pullover under attack, at the judging margin and at the largest one."""
    rows = by_margin("under").query("margin in (1.0, 1.6)")
    return rows[rows["class"].isin(["Shirt", "Pullover"])].acc


def by_beta():
    rows = csv("04", "beta").set_axis(["class", "group", "acc", "panel", "beta"], axis=1)
    rows["acc"] *= 100
    clean, attacked = rows[rows.panel == "clean"], rows[rows.panel != "clean"]
    fall = clean.groupby(["beta", "group"]).acc.mean()
    shirt = clean[clean["class"] == "Shirt"].set_index("beta").acc
    under = attacked[attacked["class"] == "Shirt"].acc
    lost = [*(fall[1] - fall[9]), shirt[1] - shirt[9]]
    return [*lost, under.min(), under.max(), claim("04", "a larger beta")[0]]


def swings():
    names = ("AT", "TRADES", "AT+EMA", "CFA (AT)", "CFA (TRADES)")
    lines = [printed("04", re.escape(name) + ": second half")[-2:] for name in names]
    ratios = [worst / average for average, worst in lines[:2]]
    steps = printed("04", "AT and TRADES: the worst class moved")
    moved, of = np.split(steps, 2)
    shares = [100 * moved.sum() / of.sum(), printed("04", "control: any")[0], 100]
    return [*ratios, *(worst for _, worst in lines), *shares]


def parts():
    rows = 100 * csv("04", "ablation").set_index("method")[["average", "worst"]]
    on_at = rows.loc["AT"] - rows.loc[["AT + EMA", "AT + FAWA", "AT + CCM", "AT + CFA"]]
    lucky = rows.loc["TRADES + CCR"]
    return [on_at.abs().to_numpy().max(), lucky.worst, rows.loc["TRADES"].average - lucky.average]


def lambda_1():
    rows = csv("04", "lambdas")
    rows = rows[rows.panel.str.startswith("λ₁")]
    base, worst = printed("04", r"λ₁ of CCM, on AT 0\.\d{3} 0\.\d{3}$")
    chosen = printed("04", r"λ₁ of CCM, on AT .* \d\.\d{3}$")
    shirt = [*(100 * rows.worst), 100 * worst, 5, 200]
    return [chosen.max(), *shirt, 100 * (base - rows.average).mean()]


def lambda_2():
    rows = csv("04", "lambdas")
    rows = 100 * rows[rows.panel.str.startswith("λ₂")][["average", "worst"]]
    base, worst = 100 * printed("04", r"λ₂ of CCR, on TRADES 0\.\d{3} 0\.\d{3}$")
    return [worst, rows.worst.mean(), *(base - rows.average)]


def against_ema(name, figure, method, *classes):
    rows = table(name, figure, "method").loc[list(classes)]
    return rows[method] - rows["AT+EMA"]


def hardest():
    rows = csv("05", "sorted_class_errors").set_index(["panel", "method", "rank"])
    rows = 100 * rows.error["clean"]
    return (rows["Adv"] - rows["Adv+"]).loc[1:3]


def mean_errors(*networks):
    """The error on the five other kinds of corruption, and the mCE, of each network in turn."""
    rows = [printed("05", rf"{re.escape(network)} .* \d\.\d{{3}}$") for network in networks]
    return [number for row in rows for number in (row[-3], row[-1])]


def deltas():
    rows = 100 * csv("05", "delta").groupby(["delta", "what"]).value.mean()
    at = 100 * csv("05", "delta").query("delta == 0.1").groupby("what").value.agg(["min", "max"])
    return [*(rows[0.05] - rows[0.4]).drop("spread, PGD-20"), *(at["max"] - at["min"]), 5, 200]


@functools.cache
def methods(what):
    return 100 * csv("06", "frontier").groupby("method")[what].mean()


def lucky_epoch():
    at = 100 * csv("06", "frontier").query("method == 'AT'").average
    return [at.max() - at.min()]


def between_papers():
    """Least and largest difference between papers on one method, at the epoch reported first."""
    atlas = csv("06", "atlas")
    atlas = atlas[~atlas["where"].str.contains("last epoch")]
    worst = atlas.groupby("method")["AA worst"].agg(["count", "min", "max"]).query("count > 1")
    return [(worst["max"] - worst["min"]).min(), (worst["max"] - worst["min"]).max()]


def last_policy(method, what, *classes):
    rows = csv("06", "policies")
    rows = rows[rows.panel.str.startswith(method) & rows.panel.str.endswith(what)]
    last = rows[rows.epoch == rows.epoch.max()]
    return last[last["class"].isin(classes)].value


def shares_at(rho):
    rows = csv("06", "codat_distribution").query("rho == @rho").set_index("class").p
    return [rows["Shirt"], rows["Trouser"]]


def coefficient():
    rows = csv("06", "codat_radius").set_index(["what", "rho"]).value * 100
    average, worst = rows["average"], rows["worst class"]
    return [
        average[0] - average[0.25],
        average[0.25] - average[1],
        worst[1] - worst[0.25],
        worst[0],
    ]


def toy_push():
    return 100 * norm.cdf([-1, 0.5, -2.5]).round(4)


def live_fooled():
    return [
        printed("07", row).mean() for row in (r"one for all \d", r"one a class \d", "random signs")
    ]


def training(method, under, column):
    """A number of the table of section 4 of notebook 07: average, sd, worst class, sd, ..."""
    return printed("07", rf"{method} {under} .* ± ")[column + (under == "PGD-20")]


def biases(method):
    """How many answers the clean answers tell, the bias tells, and of the fooled ones the bias."""
    fooled, _, told, _, of_fooled, _ = printed(
        "07", rf"{method} [\d.]+ ± [\d.]+ [\d.]+ ± [\d.]+ [\d.]+ ± [\d.]+$"
    )
    return [100 - fooled, told, of_fooled]


def kept(under):
    return [training(method, under, 0) for method in TRAININGS]


def clean_cost():
    clean = [training(method, "clean", 0) for method in TRAININGS]
    return [clean[0] - clean[1], clean[0] - clean[2]]


def into_shirt():
    lines = [printed("07", f"standard, seed {seed}") for seed in range(8)]
    return [100 * line[3] / line[1] for line in lines]


def travelled():
    """How many the undefended network's perturbation fools after class-wise training and AT."""
    rows = 100 * csv("07", "transfer").set_index(["fitted on", "judged"]).fooled["standard"]
    return rows[["class-wise universal AT", "AT"]]


def gained_classes():
    """Robust accuracies of both trainings: of the three classes in which they part."""
    rows = table("07", "trainings", "method")[["universal AT", "class-wise universal AT"]]
    return [*rows.loc["Shirt"], *rows.loc["Coat"], *rows.loc["Pullover"]]


def bias_line():
    rows = csv("09", "frontier").query("method == 'AT+EMA, bias' and seed == 0")
    rows = 100 * rows[["average", "worst"]].set_index(rows["drop"])
    steps = (rows - rows.loc[0]).abs().loc[[0.01, 0.02]].to_numpy().ravel()
    return [*steps, rows.average[0] - rows.average[0.05], *rows.worst[[0, 0.05]]]


def wat_of_seed_0():
    """WAT's worst class above the line of biases, seed 0."""
    rows = csv("09", "frontier")
    bias = rows.query("method == 'AT+EMA, bias' and seed == 0").sort_values("average")
    wat = rows[rows.method == "WAT+EMA"].iloc[0]
    return [100 * (wat.worst - np.interp(wat.average, bias.average, bias.worst))]


def above_the_line():
    numbers = r"\S+( \(?\S+)? \d\d\.\d \d\d\.\d "
    below, above = (printed("09", numbers + end).reshape(-1, 3) for end in ("-", r"\d\.\d$"))
    return [len(below), len(below) + len(above), below[:, 2].min()]


def made_of(bar, functional):
    rows = csv("09", "made_of").query("bar == @bar and functional == @functional")
    return 100 * rows.set_index("seed").value


def averaged_seeds():
    """AT+EMA at its best epoch: average and worst class of each seed, and how far they differ."""
    values = [made_of("AT+EMA, best", functional) for functional in ("average", "worst")]
    return [*values[0], *values[1], *map(np.ptp, values)]


def see_saw(label):
    return printed("09", rf"{label}, Shirt and T-shirt/top: opposite in")


def in_steps(method):
    return printed("09", rf"{re.escape(method)} \d+ \d+ -?\d\.\d\d ")


ADV = (("accurate", "on clean"), ("robust", "(PGD-20)"))
TRAININGS = ("standard", "universal AT", "class-wise universal AT", "AT")
TOPS = ["Shirt", "Pullover", "Coat", "T-shirt/top"]
