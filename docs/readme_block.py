"""The blocks of README.md that say what came out; `make readme` writes them.

They come from results/ and figures/laptop.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import wrap

import pandas as pd

from crat.papers.common import BASELINE
from crat.papers.leaderboard import attack_name, leaderboard

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures" / "laptop"
PROFILE = "laptop"
ROWS = 6  # of the leaderboard
VERDICTS = ("supported", "reversed", "no effect", "undecided", "not run")

NOTEBOOKS = {  # the paper and one question of each notebook
    "00_start_here": ("", "What are attack, adversarial training, robust accuracy of a class?"),
    "01_tian2021_class_wise_robustness": (
        "Tian et al. 2021",
        "Which classes are weak, and where do their images go?",
    ),
    "02_attacks_side_by_side": (
        "Croce and Hein 2020",
        "How much does a weak attack hide, and for which class?",
    ),
    "03_hou2022_spat": (
        "Hou et al. 2023, SPAT",
        "Does a weight for hard class pairs make a network more robust?",
    ),
    "04_wei2023_cfa": ("Wei et al. 2023, CFA", "Should each class have its own training margin?"),
    "05_amerehi2025_label_augmentation": (
        "Amerehi and Healy 2025",
        "Does a label that names an image's change narrow the gap?",
    ),
    "06_all_methods": ("all methods", "Which method lifts the worst class, at what cost?"),
    "07_benz2021_universal_class_wise": (
        "Benz et al. 2021",
        "Does one perturbation hit all classes alike?",
    ),
    "08_long_tail": ("RoBal, REAT, AT-BSL", "What does a long tail take from which class?"),
    "09_beyond_the_papers": ("ours", "Is fair training more than a shift of K biases?"),
    "10_fast_adversarial_training": (
        "fast AT",
        "Which class falls first when one step trains?",
    ),
}


def result() -> str:
    """The verdicts in one line, the two classes that lie furthest apart, and the leaderboard."""
    claims = pd.read_csv(FIGURES / "claims.csv")
    methods = pd.read_csv(FIGURES / "01_tian2021_class_wise_robustness" / "classes.csv")
    at = methods[methods.method.str.startswith("pgd_at")].set_index("class").robust_acc
    best, worst = at.idxmax(), at.idxmin()
    attack = attack_name(PROFILE)
    sentences = [
        f"**{len(claims)} claims: {counted(claims.verdict)}.**",
        "Data: mostly Fashion-MNIST. Network: a small CNN. No run has a paper's own scale yet,",
        "so a verdict is one on the idea, not on the paper's number.",
        f"Under {attack} an adversarially trained network (AT) keeps {100 * at[best]:.0f} of 100",
        f"images of its best class ({best}) and {100 * at[worst]:.0f} of its worst ({worst}).",
    ]
    return "\n".join([*wrap(" ".join(sentences), 118), "", *board(leaderboard(PROFILE), attack)])


def board(methods: pd.DataFrame, attack: str) -> list[str]:
    """Six rows: the baseline, three methods of the best average, those of the best worst class."""
    baseline, others = methods[methods.method == BASELINE], methods[methods.method != BASELINE]
    by_average = others.nlargest(ROWS // 2, "average")
    by_worst = others.drop(by_average.index).nlargest(ROWS - 1 - len(by_average), "worst")
    shown = pd.concat([baseline, by_average, by_worst]).sort_values("worst", ascending=False)
    seeds = " or ".join(map(str, sorted(set(shown.seeds))))
    lines = [
        f"| {len(shown)} of {len(methods)} methods, mean ± sd of {seeds} seeds, %"
        f" | clean | {attack} | worst class |",
        "|---|---|---|---|",
    ]
    for row in shown.to_dict("records"):
        names = ("clean", "average", "worst")
        cells = (f"{100 * row[name]:.1f} ± {100 * row[f'{name}_sd']:.1f}" for name in names)
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return lines


def notebooks() -> str:
    """A row per notebook: number, paper, question, and the verdicts on its claims."""
    claims = pd.read_csv(FIGURES / "claims.csv")
    lines = ["| | paper | one question | verdicts |", "|---|---|---|---|"]
    for stem, (paper, question) in NOTEBOOKS.items():
        verdicts = counted(claims[claims.notebook == stem].verdict)
        link = f"[{stem[:2]}](notebooks/{stem}.ipynb)"
        lines.append(f"| {link} | {paper} | {question} | {verdicts} |")
    return "\n".join(lines)


def counted(verdicts: pd.Series) -> str:
    """How often each verdict was given, such as "2 supported, 1 reversed"; "" for none."""
    counts = verdicts.value_counts()
    return ", ".join(f"{counts[name]} {name}" for name in VERDICTS if name in counts)


BLOCKS = {"result": result, "notebooks": notebooks}


def filled(text: str) -> str:
    """The README with each block between <!-- NAME --> and <!-- /NAME --> written anew."""
    for name, made in BLOCKS.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        pattern = re.compile(f"(?<={re.escape(start)}).*?(?={re.escape(end)})", re.DOTALL)
        if len(pattern.split(text)) != 2:
            raise ValueError(
                f"README.md has no single block between {start.strip()} and {end.strip()}"
            )
        before, after = pattern.split(text)
        text = before + made() + after
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
