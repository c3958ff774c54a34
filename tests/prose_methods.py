"""The values that the prose of notebook 06 may name of the methods since 2023, and of HE."""

from prose_evidence import claim, csv, printed

# columns of the leaderboard, each a mean and a deviation
CLEAN, PGD, UNION, WORST, UNION_WORST = 0, 2, 4, 6, -2


def row(method):
    """A method's row of the leaderboard, in percent."""
    return printed("06", rf"{method} \d\d\.\d ± ")


def by_both(method):
    """The worst class under PGD, and what PGD and CW leave of it."""
    return row(method)[[WORST, UNION_WORST]]


def broken_by_cw(method):
    """The points that CW breaks beyond PGD, on average."""
    found = row(method)
    return [found[PGD] - found[UNION]]


def estimated(method):
    """What AutoAttack leaves of seed 0, estimated: on average, and in the worst class."""
    return printed("06", rf"{method}\+EMA \d{{3}} \d+ \d\d\.\d \[")[[2, 5]]


def by_square(method):
    """The images of the sample that only Square breaks."""
    return printed("06", rf"{method}\+EMA \d{{3}} \d+ \d\d\.\d \[")[[1]]


def averages():
    """What an average over updates does to the worst class of the methods, and on average."""
    lifts = ("lifts the worst class of the methods", "lifts the robust accuracy of the methods")
    return [claim("06", words)[0] for words in lifts]


def csr_and_trades():
    """CSR's lead over TRADES in the worst class, without an average and with; what that takes."""
    worst = 100 * csv("06", "average_moves").groupby("method").worst.mean()
    lead = [worst[f"CSR{end}"] - worst[f"TRADES{end}"] for end in ("", "+EMA")]
    return [*lead, worst["CSR"] - worst["CSR+EMA"]]


def two_epochs():
    """The worst class before two epochs of CSR and after, and the lead over TRADES' two."""
    before = printed("06", r"0 TRADES\+EMA-s0 ")[4]
    after = printed("06", r"1 CSR, two epochs ")[5]
    return [before, after, claim("06", "two epochs of CSR")[0]]


SINCE = [
    ("it adds|lowers the worst class of the methods", averages),
    ("stands 3.7 points", csr_and_trades),
    ("Two epochs of CSR take|The difference", two_epochs),
    ("by how alike", lambda: row(r"DAFA\+EMA")[[WORST]]),
    ("AWP\\+EMA, AT", lambda: row(r"AWP\+EMA")[[PGD, WORST]]),
    ("in a ball", lambda: [row(r"AT\+EMA")[PGD] - row(r"FAAL\+EMA")[PGD]]),
    ("of the shirts", lambda: [estimated(m)[1] for m in ("CFOL", "WAT", "FAAL", "DAFA", "SPAT")]),
    ("of the shirts", lambda: by_both(r"SPAT\+EMA")),
    ("CSR's lead", lambda: [estimated(m)[1] for m in ("CSR", "TRADES")]),
    (
        "are the lowest",
        lambda: [estimated(m)[0] for m in ("HAM", "FAIR-TAT", r"Adv\+ ", "SPAT", "BAT")],
    ),
    ("Square broke", lambda: [*by_square("ABSLD"), *by_square(r"Adv\+ ")]),
    ("HAM's gain does", lambda: [*estimated("HAM"), *estimated("AT")]),
    ("under PGD HAM lifts|HAM\\+EMA, which", lambda: by_both(r"HAM\+EMA")),
    ("PGD and CW together", lambda: [*by_both(r"HAM\+EMA"), *by_both(r"AT\+EMA")]),
    ("FAIR-TAT\\+EMA trains", lambda: row(r"FAIR-TAT\+EMA")[[CLEAN, PGD]]),
    ("ABSLD\\+EMA and", lambda: [row(rf"{m}\+EMA")[WORST] for m in ("ABSLD", "Fair-ARD")]),
    ("AT\\+LS\\+EMA, with", lambda: [*broken_by_cw(r"AT\+LS\+EMA"), *broken_by_cw(r"AT\+EMA")]),
    ("HE\\+EMA, AT on", lambda: row(r"HE\+EMA")[[PGD, WORST]]),
    ("HAM lifts the worst", lambda: claim("06", "HAM is more robust")),
    ("and HE more", lambda: claim("06", "HE is more robust")),
    (
        "ALP is less",
        lambda: [claim("06", f"{of} is more robust than AT")[0] for of in ("ALP", "BAT")],
    ),
    ("Smoothed labels add", lambda: [1.0]),
]
