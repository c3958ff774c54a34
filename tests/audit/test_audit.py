"""`crat audit`: any model is judged and reported, what was kept is read, and what cannot be
judged is one line.
"""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import odd_nets
import pandas as pd
import pytest
import torch
from tiny_runs import TINY, shorten_autoattack

from crat import audit, cli, data, store
from crat.analysis import metrics
from crat.analysis.two_phase import Design
from crat.attacks.hunter import Hunter
from crat.attacks.logits import NO_GRADIENT
from crat.audit import Plan, report
from crat.audit import model as audit_model
from crat.config import ConfigError
from crat.nets import models
from crat.outcomes import cache
from crat.outcomes.batteries import protocol_pgd
from crat.outcomes.sampled import Sampled
from crat.training.trainer import train

BASE = {"device": "cpu", "tell": lambda line: None}


@pytest.fixture(scope="module")
def images():
    return data.load("fashion_mnist_mini")


@pytest.fixture(scope="module")
def nets(images, tmp_path_factory):
    return odd_nets.put(tmp_path_factory.mktemp("nets"), images)


@pytest.fixture
def crat(nets, own_store, monkeypatch, capsys):
    """Runs `crat audit` beside nets.py, on 60 images of fashion_mnist_mini: exit code, stdout,
    stderr.
    """
    monkeypatch.chdir(nets)

    def run(words):
        data = [] if "--data" in words else ["--data", "fashion_mnist_mini"]
        device = [] if "--device" in words else ["--device", "cpu"]
        code = cli.main(["audit", *words.split(), *data, *device, "--images", "60"])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def audited(nets, tmp_path_factory):
    """The linear net under FGSM and AA: plan, folder, outcomes, and the card."""
    plan = Plan("fashion_mnist_mini", "0.05", images=60, attacks=("FGSM", "AA"))
    out = tmp_path_factory.mktemp("report") / "out"
    with pytest.MonkeyPatch.context() as patch:
        shorten_autoattack(patch, steps=100)
        folder, found, _ = audit.audit(f"{nets / 'nets.py'}:linear", plan, out=out, **BASE)
    assert folder == out
    return plan, folder, found, json.loads((folder / "card.json").read_text())


def test_the_tables_are_what_the_outcomes_say(audited, images):
    plan, folder, found, _ = audited
    names = {"card.json", "class_wise.csv", "broken_by.csv"}
    names |= {
        f"{figure}.{kind}"
        for figure in ("class_bars", "confusion")
        for kind in ("png", "pdf", "csv")
    }
    assert {path.name for path in folder.glob("*.*")} == names
    attacks = {name: found.predictions[name] for name in plan.attacks}
    summary = metrics.summary(found.y, found.clean, attacks, images.classes)
    written = pd.read_csv(folder / "class_wise.csv")
    pd.testing.assert_frame_equal(written, summary, rtol=1e-5, atol=1e-6, check_dtype=False)
    drawn = written[written.attack == "AA"].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "class_bars.csv"), drawn)
    pairs = pd.read_csv(folder / "confusion.csv").pivot_table(
        "n", ["attack", "true"], "predicted", sort=False
    )
    assert (
        pairs.loc["AA"].to_numpy() == metrics.confusion(found.y, found.predictions["AA"], 10)
    ).all()


def test_every_image_is_broken_by_one_part_or_none(audited):
    _, folder, found, _ = audited
    table = pd.read_csv(folder / "broken_by.csv")
    assert list(table.columns) == [
        "attack",
        "class",
        "n",
        "clean",
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
        "survived",
    ]
    assert (table.n == 6).all()  # 60 of ten classes
    assert (table.iloc[:, 3:].sum(axis=1) == table.n).all()
    assert (table.survived == np.bincount(found.y[found.robust("AA")], minlength=10)).all()
    assert (table.clean == np.bincount(found.y[found.clean != found.y], minlength=10)).all()


def test_the_card_tells_what_was_judged_and_the_result(audited, images):
    plan, _, found, card = audited
    asked = {
        "eps": "0.05",
        "norm": "Linf",
        "images": 60,
        "seed": 0,
        "data": "fashion_mnist_mini",
        "scale": 1.0,
    }
    assert {name: card[name] for name in asked} == asked
    assert card["attacks"] == {"FGSM": repr(plan.battery["FGSM"]), "AA": repr(plan.battery["AA"])}
    assert card["seconds"].keys() == {"FGSM", "AA"}
    assert card["warnings"] == []
    attacks = {name: found.predictions[name] for name in plan.attacks}
    totals = metrics.totals(found.y, found.clean, attacks).set_index("attack")
    for name, result in card["results"].items():
        assert result["average"] == totals.average[name]
        assert result["worst"] == totals.worst[name]
        assert result["worst_interval"] == [totals.worst_low[name], totals.worst_high[name]]
        assert result["average_interval"][0] < result["average"] < result["average_interval"][1]
    worst = found.y == images.classes.index(card["results"]["AA"]["worst_class"])
    assert found.robust("AA")[worst].mean() == card["results"]["AA"]["worst"]
    # FGSM is exact on two classes of a linear net, AA on ten
    assert (
        card["results"]["AA"]["average"]
        <= card["results"]["FGSM"]["average"]
        < card["results"]["clean"]["average"]
    )


def test_the_command_reads_what_is_kept(crat, monkeypatch):
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # of another test
    words = "nets:linear --attacks FGSM PGD-20 --eps 8/255"
    real, begun = cache.attacked_batches, []

    def killed_in_the_third(model, x, y, attack, **settings):
        begun.append(attack)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(model, x, y, attack, **settings)

    monkeypatch.setattr(cache, "attacked_batches", killed_in_the_third)
    assert crat(words)[::2] == (130, "crat: stopped; the same command resumes from what is done\n")
    code, first, _ = crat(words)
    assert code == 0
    assert len(begun) == 4  # clean, then FGSM killed; FGSM, PGD-20
    assert re.search(r"\nkept: clean of nets-linear, judged \d+ [A-Z][a-z]+ \d\d:\d\d\n", first)
    assert "nets:linear: Net, 7,850 parameters, weights " in first
    assert "fashion_mnist_mini: 60 test images, Linf 8/255, search in " in first
    assert re.search(r"\nclass +n +clean +FGSM +PGD-20 +union\n", first)
    assert re.search(r"\nworst class +\d+\.\d +\d+\.\d", first)
    folder = re.search(r"\n(\S+): card.json, class_bars.csv, ", first)[1]
    assert re.search(r"runs/audits/nets-linear-[0-9a-f]{16}$", folder)
    monkeypatch.setattr(cache, "attacked_batches", None)
    code, again, _ = crat(words)
    assert code == 0
    assert without_kept(again) == without_kept(first)
    assert re.findall(r"clean|FGSM|PGD-20", "".join(re.findall("kept: .*", again))) == [
        "clean",
        "FGSM",
        "PGD-20",
    ]


def without_kept(told):
    return re.sub("kept: .*\n", "", told)


def test_mended_code_under_the_same_weights_is_judged_anew(crat, nets, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    folders = set()
    for mended in ("", ".softmax(1)"):
        (nets / "mine.py").write_text(
            f"from nets import Net\ndef net(): return Net(after=lambda z: z{mended})"
        )
        _, told, _ = crat("mine.py:net --attacks FGSM")
        folders.add(re.search(r"audits/\S+", told)[0])
        assert ("look like probabilities" in told) == bool(mended)
    assert len(folders) == 2


def test_a_folder_of_something_else_is_left_alone(crat, tmp_path):
    (tmp_path / "card.json").write_text('{"config": {}}')
    code, _, error = crat(f"nets.py:linear --attacks FGSM --out {tmp_path}")
    assert (code, (tmp_path / "card.json").read_text()) == (2, '{"config": {}}')
    assert error == f"crat: {tmp_path} holds something else than an audit: give another --out\n"


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (
            "nowhere.nets:net",
            2,
            "cannot import 'nowhere.nets': ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("nowhere.py:net", 2, "there is no file nowhere.py"),
        (
            "linear.pt",
            2,
            "linear.pt is a file: weights of a class of yours are `crat audit file.py:Class",
        ),
        ("nets.py:lienar", 2, "nets.py has no function 'lienar'"),
        ("nets.py:EXTRA", 2, "nets.py has no function 'EXTRA'"),
        ("nets.py:number", 2, "number() of nets.py returns int, not an nn.Module"),
        ("nets.py:broken", 1, "broken() of nets.py failed: KeyError: 'weights'"),
        (
            "nets.py:colour",
            1,
            "the model takes no float32 images of shape (60, 1, 28, 28): RuntimeError: ",
        ),
        ("nets.py:pair", 1, "the model answers with a tuple, not with logits (N, K)"),
        (
            "nets.py:labels",
            1,
            "the model answers with int64 of shape (60,) for 60 images, not logits (N, K)",
        ),
        (
            "nets.py:squeezed",
            1,
            "the model answers with float32 of shape (10,) for 1 images, not logits (N, K)",
        ),
        (
            "nets.py:wide",
            1,
            "answers with 13 logits, not 10; --logit-slice 10 lets the first 10 answer",
        ),
        ("nets.py:narrow", 1, "the model answers with 9 logits, not 10\n"),
        ("nets.py:wide --logit-slice 11", 1, "answers with 11 logits, not 10; --logit-slice 10"),
        ("nets.py:nan", 1, "the model gives NaN logits for 60 of 60 images"),
        ("nets.py:cut", 1, f"crat: {NO_GRADIENT}\n"),
        ("linear.pt --model vgg", 2, "unknown model 'vgg'; known: small_cnn"),
        ("nothing.pt --model small_cnn", 1, "there is no weights file nothing.pt"),
        (
            "nets.py --model small_cnn",
            1,
            "nets.py cannot be read: it is damaged, or no file of torch.save",
        ),
        ("linear.pt --model small_cnn", 1, "linear.pt does not fit this small_cnn"),
        (
            "nets.py:linear --attacks JSMA",
            2,
            "unknown attack 'JSMA'; known: FGSM, PGD-20, CW-20, Square, AA, AA-plus",
        ),
        (
            "nets.py:linear --attacks FGSM --norm L1 --eps 3",
            2,
            "unknown attack 'FGSM'; known: Square, AA, AA-plus",
        ),
        ("nets.py:linear --eps 8", 2, "eps in Linf is between 0 and 1, such as 8/255, not 8"),
        ("nets.py:linear --eps nan", 2, "eps in Linf is between 0 and 1, such as 8/255, not nan"),
        ("nets.py:linear --eps eight", 2, "'eight' is not a number: write 0.1 or 8/255"),
        (
            "nets.py:linear --norm L2",
            2,
            "L2 needs an eps: the protocol of fashion_mnist_mini has one for Linf only",
        ),
        ("nets.py:linear --norm L2 --eps 0", 2, "eps in L2 is above 0 and finite, not 0"),
        ("nets.py:linear --norm L3", 2, "unknown norm 'L3'; known: Linf, L2, L1"),
        (
            "nets.py:linear --dtype float16",
            2,
            "unknown dtype 'float16'; known: auto, float32, bfloat16",
        ),
        (
            "nets.py:linear --scale 0",
            2,
            "scale is above 0, images at least 0 and logit_slice at least 2",
        ),
        ("nets.py:linear --data cifar", 2, "unknown data set 'cifar'; known: fashion_mnist_mini"),
        ("nets.py:linear --data svhn", 1, "svhn is not in"),
        ("nets.py:linear --device tpu", 2, "device 'tpu' cannot be used here"),
    ],
)
def test_errors_are_one_line(crat, tmp_path, words, code, line):
    got, _, error = crat(words)
    assert got == code, error
    assert error.startswith("crat: ")
    assert error.count("\n") == 1
    assert line in error
    assert not (tmp_path / "runs").exists()


def test_nothing_is_unpickled(crat, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Trap()}, tmp_path / "trap.pt")
    code, _, error = crat(f"{tmp_path / 'trap.pt'} --model small_cnn")
    assert (code, error.count("\n")) == (1, 1)
    assert "holds more than tensors" in error
    assert not (tmp_path / "sprung").exists()


def test_the_first_logits_answer_scaled(nets, own_store, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    plan, found = Plan("fashion_mnist_mini", images=40, attacks=("FGSM",), dtype="float32"), {}
    for name, settings in {
        "linear": {},
        "wide": {"logit_slice": 10},
        "cosines": {"scale": 30.0},
    }.items():
        asked = replace(plan, **settings)
        folder, found[name], _ = audit.audit(f"{nets / 'nets.py'}:{name}", asked, **BASE)
        card = store.read_json(folder / "card.json")
        assert (card["warnings"], card["logit_slice"], card["scale"]) == (
            [],
            asked.logit_slice,
            asked.scale,
        )
    for name in ("wide", "cosines"):
        for attack, logits in found["linear"].logits.items():
            np.testing.assert_allclose(found[name].logits[attack], logits, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_checkpoint_of_a_known_architecture(crat, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    model, path = models.build("small_cnn", 10, (1, 28, 28), seed=3), tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        models.save_weights(model, path)
    else:
        torch.save(
            {"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}},
            path,
        )
    code, told, _ = crat(f"{path} --model small_cnn --attacks FGSM --out {tmp_path / 'report'}")
    assert code == 0
    card = store.read_json(tmp_path / "report" / "card.json")
    assert (card["weights"], card["model"]) == (store.fingerprint(model.state_dict()), "small_cnn")
    assert "chance is 10.0 %" in told  # it is untrained


def test_a_run_is_audited_by_its_name_on_its_own_images(own_store, capsys):
    """Without --data: the run's data set."""
    run = train(TINY.but(epochs=1, seed=91), progress="none", device="cpu")
    words = ["audit", "pgd_at-s91", "--attacks", "FGSM", "--images", "60", "--device", "cpu"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    weights = run.card()["best"]["weights"]
    assert re.match(rf"pgd_at-s91: Classifier, [\d,]+ parameters, weights {weights}\n", told)
    assert "\nfashion_mnist_mini: 60 test images, Linf 0.1, search in " in told
    assert cli.main(["audit", "nets.py:linear"]) == 2
    assert "crat: which images? --data fashion_mnist_mini | " in capsys.readouterr().err


def test_what_square_alone_breaks_is_a_warning():
    broken_by = np.array(["square"] * 3 + ["apgd-ce"] * 500 + [""] * 497)
    found = cache.Outcomes("test", ("a", "b"), np.zeros(1000, int), {}, {}, {"AA": broken_by})
    (line,) = audit_model._masked(found)
    assert line.startswith("Square broke 3 of 1000 images that gradient-based attacks left")
    assert audit_model._masked(replace(found, broken_by={"AA": broken_by[2:]})) == []


def test_the_battery_keeps_the_protocols_ratio_of_step_to_eps():
    assert list(Plan("cifar10").battery) == ["FGSM", "PGD-20", "CW-20", "AA"]
    assert Plan("cifar10").eps == "8/255"
    assert Plan("cifar10").battery["PGD-20"] == protocol_pgd("cifar10")
    halved = Plan("cifar10", "4/255", "L2").battery
    assert halved["PGD-20"].step_size == pytest.approx(1 / 255)
    assert {attack.norm for attack in halved.values()} == {"L2"}
    assert list(Plan("mnist", "10", "L1").battery) == ["AA"]
    assert list(Plan("mnist", "10", "L1", images=0).battery) == ["AA"]
    everyone = Plan("cifar10", images=0)
    assert list(everyone.battery) == ["FGSM", "PGD-20", "CW-20", "Hunter"]
    assert everyone.on_sample == {"AA-sampled": everyone.known["AA"]}
    assert Plan("cifar10").on_sample == {}
    whole = Plan("cifar10", images=0, attacks=("pgd", "AA"))
    assert (list(whole.battery), whole.on_sample) == (["PGD-20", "AA"], {})
    sampled = Plan("cifar10", "0.5", "L2", attacks=("AA-sampled",)).battery
    assert list(sampled) == ["PGD-20", "CW-20", "Hunter"]
    assert sampled["Hunter"] == Hunter(0.5, "L2")
    with pytest.raises(ConfigError, match="unknown attack 'jsma'"):
        Plan("cifar10", attacks=("jsma",))
    assert list(Plan("cifar10", attacks=("pgd", "AutoAttack")).battery) == ["PGD-20", "AA"]


def test_of_all_images_a_sample_meets_autoattack(nets, tmp_path, monkeypatch):
    shorten_autoattack(monkeypatch)
    plan = Plan("fashion_mnist_mini", "0.05", images=0, attacks=("AA-sampled",), dtype="float32")
    told = []
    settings = {"out": tmp_path / "out", "device": "cpu", "tell": told.append}
    folder, found, sampled = audit.audit(f"{nets / 'nets.py'}:linear", plan, **settings)
    assert set(found.predictions) == {"clean", "PGD-20", "CW-20", "Hunter"}
    n = len(sampled.sample.places)
    assert 0 < n < len(found.y) == 2000
    card = store.read_json(folder / "card.json")
    ran = {"PGD-20", "CW-20", "Hunter", "AA-sampled"}
    assert card["attacks"].keys() == card["seconds"].keys() == ran
    assert card["sampled"]["design"] == {"hard": 0.0, "random": 0.05, "least": 10, "seed": 0}
    assert card["sampled"]["images"] == 2000
    assert card["sampled"]["attacked"] == n == card["sampled"]["hard"] + card["sampled"]["drawn"]
    table = pd.read_csv(folder / "estimates.csv")
    pd.testing.assert_frame_equal(table, sampled.table, rtol=1e-5, check_dtype=False)
    result = card["results"]["AA-sampled"]
    assert result["average"] == pytest.approx(sampled.table.robust_acc.mean())
    assert result["worst_class"] == table["class"][table.robust_acc.argmin()]
    # no table counts an image as robust that AutoAttack did not meet
    assert "AA-sampled" not in set(pd.read_csv(folder / "class_wise.csv").attack)
    assert (pd.read_csv(folder / "broken_by.csv").n.sum()) == n
    assert pd.read_csv(folder / "class_bars.csv").robust_acc.tolist() == table.robust_acc.tolist()
    shown = audit.estimate_table(sampled)
    assert shown.startswith(
        f"AA-sampled: AutoAttack on {n} of 2000 images, drawn at random of those"
    )
    assert re.search(r"\nShirt +200 +\d+ +\d+\.\d \[\d+\.\d, \d+\.\d\] +\d+\.\d\n", shown)
    monkeypatch.setattr(cache, "attacked_batches", None)
    _, _, again = audit.audit(f"{nets / 'nets.py'}:linear", plan, **settings)
    assert again.table.equals(sampled.table)


def test_breaks_in_the_random_part_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    y = np.arange(2000) % 2
    logits = np.stack([1.0 - y, y], 1)
    right = dict.fromkeys(("clean", "PGD-20", "CW-20"), y)
    found = cache.Outcomes("test", ("a", "b"), y, dict.fromkeys(right, logits), right, {})
    found.margins.update(dict.fromkeys(right, np.ones(2000)))

    def attack(places):
        predictions = {"clean": y[places], "AA-sampled": 1 - y[places]}
        broken_by = {"AA-sampled": np.array(["apgd-t"] * len(places))}
        return cache.Outcomes("test", ("a", "b"), y[places], {}, predictions, broken_by)

    sampled = Sampled.of(found, ("PGD-20", "CW-20"), Design(), attack)
    shown = audit.estimate_table(sampled)
    assert "96 of 96 randomly drawn images that PGD-20 and CW-20 left were broken" in shown
    assert "the network hides its gradients, most for a, b; the intervals widen" in shown
    card = {"subject": "net.py:net", "norm": "Linf", "eps": "0.1"}
    battery = Plan("cifar10", images=0).known
    battery = {name: battery[name] for name in ("PGD-20", "CW-20", "AA-sampled")}
    report.report(tmp_path, card, battery, found, sampled)
    card = store.read_json(tmp_path / "card.json")
    assert (card["sampled"]["drawn"], card["sampled"]["drawn_broken"]) == (96, 96)
    assert card["results"]["AA-sampled"]["average"] == 0
    assert card["results"]["CW-20"]["average"] == 1


def test_a_model_with_random_outputs_gets_one_verdict_in_both_tables(crat):
    """Who survived AutoAttack, class by class, is who counts as robust, class by class."""
    crat("nets.py:noisy --attacks AA-rand --eps 0.01 --out noisy")
    classes = pd.read_csv("noisy/class_wise.csv").query("attack == 'AA-rand'").set_index("class")
    survived = pd.read_csv("noisy/broken_by.csv").set_index("class").survived
    assert 0 < survived.sum() < 60
    assert (classes.loc[survived.index].robust_acc * 6).round().astype(
        int
    ).tolist() == survived.tolist()


def test_of_many_classes_the_worst_are_drawn(tmp_path, monkeypatch):
    rng, names, drawn = np.random.default_rng(0), [f"class {k}" for k in range(30)], {}
    y = np.repeat(np.arange(29), 10)  # the last has no image
    clean = np.where(rng.random(290) < 0.9, y, 0)
    predictions = {"clean": clean, "FGSM": np.where(rng.random(290) < 0.5, clean, 1)}
    found = cache.Outcomes("test", tuple(names), y, {}, predictions, {})
    monkeypatch.setattr(
        "crat.plots.class_bars", lambda table, title: drawn.update(table=table, title=title)
    )
    monkeypatch.setattr(
        "crat.plots.confusion_heat",
        lambda matrices, classes: drawn.update(matrices, classes=classes),
    )
    monkeypatch.setattr("crat.plots.save", lambda *_: None)
    card = {"subject": "some/net.py:net", "norm": "Linf", "eps": "0.1"}
    report.report(tmp_path, card, {"FGSM": Plan("cifar100").known["FGSM"]}, found)
    summary = metrics.summary(y, clean, {"FGSM": predictions["FGSM"]}, names)
    worst = summary[summary.attack == "FGSM"].nsmallest(20, "robust_acc")
    assert sorted(drawn["table"].robust_acc) == sorted(worst.robust_acc)
    assert set(drawn["classes"]) == set(drawn["table"]["class"]) <= set(names[:29])
    assert re.fullmatch(
        r"net.py:net under FGSM, Linf 0.1: average of classes \d+\.\d %; the 20 worst classes",
        drawn["title"],
    )
    assert drawn["FGSM"].shape == (20, 20)
    assert np.isfinite(drawn["FGSM"]).all()
