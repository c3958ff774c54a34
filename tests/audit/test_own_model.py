"""A stranger's network and weights, on a stranger's images: the command and the Python door."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from crat import audit, cli, data, store
from crat.attacks.logits import AttackError
from crat.audit import report
from crat.audit.foreign import ModelError
from crat.config import ConfigError
from crat.data.registry import DATASETS
from crat.outcomes import cache

CLASSES = ("a_b & c%", "birch", "cherry")
NET = """
import torch
from torch import nn

class Body(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))

class Net(nn.Module):
    size = 8

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.4, 0.4]).view(1, 3, 1, 1))
        self.body = Body()

    def forward(self, x):
        assert x.shape[-1] == self.size, f"images of {self.size} pixels, not {x.shape[-1]}"
        return self.body(x - self.mean)

class Large(Net):
    size = 24

class Ten(Body):
    def __init__(self):
        super().__init__(10)
"""


@pytest.fixture(autouse=True)
def place(tmp_path, own_store, monkeypatch):
    """A folder with net.py and the images photos/, in which the test runs."""
    monkeypatch.setenv("CRAT_DATA", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    known = dict(DATASETS)
    (tmp_path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    for part, n in (("train", 5), ("test", 6)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (9, 12, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    yield tmp_path
    DATASETS.clear()
    DATASETS.update(known)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without their figures, which take the longest."""
    monkeypatch.setattr(report, "_draw", lambda *_: None)


def made(name="Net", seed=0):
    """A network of net.py whose head tells the brightest channel."""
    scope = {"__name__": "net"}
    exec(NET, scope)
    torch.manual_seed(seed)
    net = scope[name]()
    body = getattr(net, "body", net)
    with torch.no_grad():
        body.conv.weight.zero_()
        body.conv.bias.zero_()
        body.head.bias.zero_()
        body.head.weight.zero_()
        for channel in range(3):
            body.conv.weight[channel, channel] = 1 / 9
            body.head.weight[channel, channel] = 20
    return net.eval()


@pytest.fixture
def crat(capsys):
    """Runs `crat audit` on photos/: exit code, stdout, stderr."""

    def run(words):
        given = [] if "--data" in words else ["--data", "photos/", "--size", "8"]
        code = cli.main(["audit", *words.split(), *given, "--device", "cpu"])
        return code, *capsys.readouterr()

    return run


FGSM = "--attacks FGSM --eps 4/255 --out out"


def card_of(folder="out"):
    return store.read_json(Path(folder) / "card.json")


def test_from_a_folder_and_weights_to_a_card(crat):
    torch.save(made().state_dict(), "net.pt")
    words = "net.py:Net --weights net.pt --attacks FGSM PGD --eps 4/255 --out out"
    code, told, error = crat(f"{words} --csv t/c.csv --latex t/c.tex")
    assert (code, error) == (0, "")
    card = card_of()
    assert card["weights"] == store.fingerprint(made().state_dict())
    assert (card["model"], card["images"], card["eps"]) == ("Net", 18, "4/255")
    assert card["data"].startswith("photos-")
    assert card["results"]["clean"]["average"] == 1
    assert card["warnings"] == []
    for name in ("class_bars.png", "confusion.pdf", "class_wise.csv"):
        assert f"{name}" in told
        assert (Path("out") / name).stat().st_size > 0
    table = pd.read_csv("t/c.csv")
    assert table[table.attack == "PGD-20"]["class"].tolist() == list(CLASSES)
    written = pd.read_csv("out/class_wise.csv")
    pd.testing.assert_frame_equal(table, written, rtol=1e-5, atol=1e-6, check_dtype=False)
    tex = Path("t/c.tex").read_text(encoding="utf-8")
    assert r"\caption{net.py:Net on photos-" in tex
    assert r"a\_b \& c\% & 6 & " in tex


@pytest.mark.parametrize(
    ("saved", "words", "line"),
    [
        (lambda net: {"ema": net, "raw": made(seed=1).state_dict()}, "--key ema", ""),
        (lambda net: {f"model.{name}": value for name, value in net.items()}, "", ""),
        (lambda net: {f"module.{name}": value for name, value in net.items()}, "", ""),
        (lambda net: made().body.state_dict(), "", ""),
        (
            lambda net: {k: v for k, v in net.items() if not k.endswith("num_batches_tracked")},
            "",
            "",
        ),
        (
            lambda net: {"model": net, "ema": made("Ten").state_dict()},
            "",
            "warning: net.pt holds the weights model, ema: model is taken; --key chooses another",
        ),
    ],
    ids=["key", "a trainer's front", "DataParallel's", "of the part", "old torch", "two"],
)
def test_weights_find_their_network(crat, undrawn, saved, words, line):
    torch.save(saved(made().state_dict()), "net.pt")
    code, told, _ = crat(f"net.py:Net --weights net.pt {words} {FGSM}")
    assert code == 0
    assert card_of()["weights"] == store.fingerprint(made().state_dict())
    assert line in told


@pytest.mark.parametrize(
    ("saved", "words", "line"),
    [
        (
            lambda: {"ema": made().state_dict()},
            "--key swa",
            "net.pt holds no weights named 'swa'; there are: ema",
        ),
        (
            lambda: {"one": made().state_dict(), "two": made().state_dict()},
            "",
            "net.pt holds several: one, two; --key chooses",
        ),
        (
            lambda: nn.Linear(3, 3).state_dict(),
            "",
            "does not fit this Net: 10 missing (mean; body.conv.weight; body.conv.bias ...), 2 "
            "unexpected (weight; bias); a function in its place, file.py:make, may build and load",
        ),
        (
            lambda: made("Ten").state_dict(),
            "",
            "does not fit this Body: 2 of another shape (head.weight (10, 4), here (3, 4); ",
        ),
        (
            lambda: nn.Linear(3, 3),
            "",
            "holds more than tensors, such as a whole pickled model, and opening that would run",
        ),
        (lambda: [1, 2], "", "net.pt holds no state_dict, neither itself nor inside"),
    ],
    ids=["wrong key", "several", "another network", "other classes", "pickled", "no weights"],
)
def test_weights_that_cannot_be_used_are_one_line(crat, saved, words, line):
    torch.save(saved(), "net.pt")
    code, _, error = crat(f"net.py:Net --weights net.pt {words} {FGSM}")
    assert (code, error.count("\n")) == (1, 1)
    assert line in error
    assert not Path("out").exists()


def test_a_part_of_a_network_is_not_enough(crat):
    """A backbone's weights would leave the head as it was drawn."""
    torch.save(made().body.conv.state_dict(), "net.pt")
    code, _, error = crat(f"net.py:Net --weights net.pt {FGSM}")
    assert code == 1
    assert "does not fit this Net" in error


def test_what_a_pickle_holds_is_not_run(crat, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"model": made().state_dict(), "args": Trap()}, "net.pt")
    assert crat(f"net.py:Net --weights net.pt {FGSM}")[0] == 1
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("pgd_at-s0-53db9ebe064f4488 --weights net.pt", "--weights go with file.py:Class, whose"),
        ("net.pt --model small_cnn --weights net.pt", "--weights go with file.py:Class; with"),
        ("net.py:Net --key ema", "--key chooses among the weights of a file"),
        ("net.py:Net --data photos/ --size 0", "argument --size: a number from 1 on, not '0'"),
        ("net.py:Net --data cifar10 --size 8", "--size and --stream are for"),
        ("net.py:Net --data nowhere/", "no images in "),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(crat, words, line):
    code, _, error = crat(f"{words} {FGSM}")
    assert code in (1, 2)
    assert error.count("\n") == 1
    assert line in error


def test_another_number_of_classes_is_told_first(crat, monkeypatch):
    monkeypatch.setattr(cache, "attacked_batches", None)
    torch.save(made("Ten").state_dict(), "net.pt")
    code, told, error = crat(f"net.py:Ten --weights net.pt {FGSM}")
    assert (code, told, error.count("\n")) == (1, "", 1)
    assert "the model answers with 10 logits, not 3; " in error
    assert "; --data with 10 classes: fashion_mnist_mini | mnist | " in error


def test_images_are_scaled_for_the_model_and_attacked_as_they_are(crat, undrawn):
    torch.save(made("Large").state_dict(), "net.pt")
    code, _, error = crat(f"net.py:Large --weights net.pt {FGSM}")
    assert code == 1
    assert "takes no float32 images of shape (18, 3, 8, 8): AssertionError: images of 24" in error
    assert error.count("\n") == 1
    code, _, _ = crat(f"net.py:Large --weights net.pt --resize 24 {FGSM}")
    assert code == 0
    card = card_of()
    assert (card["resize"], card["model"]) == (24, "Large")
    assert card["results"]["clean"]["average"] == 1


@pytest.mark.parametrize(
    ("text", "subject", "line"),
    [
        ("", "one.py", "one.py is a file: name its class or function, one.py:Net"),
        ("", "none.py:Net", "there is no file none.py"),
        ("class A: pass\ndef b(): pass\n", "one.py:Net", "has no function 'Net'; it has: A, b\n"),
        ("from torch import nn\n", "one.py:Net", "one.py has no function 'Net'\n"),
        (
            "def net(classes): pass\n",
            "one.py:net",
            "net() of one.py needs arguments (missing a required argument: 'classes'): name a "
            "function that calls it with them",
        ),
        (
            "raise SystemExit(1)\n",
            "one.py:net",
            "it ends the program; put what it runs under if __name__ == \"__main__\"",
        ),
        ("", "net.pt", "net.pt is a file: weights of a class of yours are `crat audit file.py:"),
        ("from net import Ten\nclass Net(Ten):\n    def forward(self, x):\n"
         "        return super().forward(x[:, :1])\n", "one.py:Net",
         "; --resize N scales them for the model\n"),
    ],
)  # fmt: skip
def test_a_subject_that_is_no_network_is_one_line(crat, text, subject, line):
    Path("one.py").write_text(text)
    torch.save(made().state_dict(), "net.pt")
    code, _, error = crat(f"{subject} {FGSM}")
    assert code in (1, 2)
    assert error.count("\n") == 1
    assert line in error


def test_the_states_of_an_optimizer_are_no_weights(crat, undrawn):
    net = made()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, "a.pt")
    code, told, _ = crat(f"net.py:Net --weights a.pt {FGSM}")
    assert (code, "warning" in told) == (0, False)
    code, _, error = crat(f"net.py:Net --weights a.pt --key optimizer {FGSM}")
    assert "holds no weights named 'optimizer'; there are: net\n" in error


def test_a_mistyped_folder_is_told_as_one(crat):
    code, _, error = crat(f"net.py:Net --data photo --size 8 {FGSM}")
    assert (code, error.count("\n")) == (2, 1)
    assert "unknown data set 'photo'; known: fashion_mnist_mini" in error
    assert error.endswith("; nor is there a folder photo\n")


# --- from Python ---

QUIET = {"tell": lambda line: None}


def photos():
    name = data.own.register("photos/", size=8)
    images = data.load(name)
    return images.x_test, images.y_test


def test_the_python_door_and_the_command_say_the_same(crat):
    torch.save(made().state_dict(), "net.pt")
    crat("net.py:Net --weights net.pt --attacks FGSM PGD --eps 4/255 --out out")
    x, y = photos()
    told = []
    judged = audit.audit_model(
        made(), (x, y), CLASSES, "4/255", attacks=("FGSM", "PGD"), out="py", tell=told.append
    )
    assert judged.folder == Path("py")
    assert judged.sampled is None
    files = {path.name for path in Path("out").glob("*.*")}
    assert {path.name for path in judged.folder.glob("*.*")} == files
    for name in ("class_wise.csv", "class_bars.csv", "confusion.csv"):
        assert (judged.folder / name).read_text() == (Path("out") / name).read_text()
    here, there = card_of("py"), card_of("out")
    assert here.keys() == there.keys()
    for key in ("results", "weights", "images", "eps", "attacks", "parameters", "warnings"):
        assert here[key] == there[key], key
    assert told[0].startswith("Net: Net, ")
    assert "18 test images, Linf 4/255" in told[1]


def test_a_loader_arrays_and_a_pair_are_the_same_images(undrawn):
    x, y = photos()
    dataset = TensorDataset(x.float() / 255, y)
    samples = [
        DataLoader(dataset, 5),
        dataset,
        (x.float() / 255, y),
        ((x.float() / 255).numpy().astype(np.float64), y.numpy().astype(np.uint8)),
        [(x[:7].float() / 255, y[:7]), (x[7:].float() / 255, y[7:])],
    ]
    asked = {"attacks": ("FGSM",), **QUIET}
    folders = {
        audit.audit_model(made(), given, CLASSES, 4 / 255, **asked).folder for given in samples
    }
    assert len(folders) == 1
    assert {path.name.split("-")[0] for path in store.home().glob("audits/*")} == {"Net"}


def test_what_is_kept_is_read_and_whatever_differs_is_judged_anew(undrawn, monkeypatch):
    real, begun = cache.attacked_batches, []
    monkeypatch.setattr(cache, "attacked_batches", lambda *a, **s: begun.append(1) or real(*a, **s))
    x, y = photos()

    def computed(model=None, samples=(x, y), classes=CLASSES, eps="4/255", **plan):
        begun.clear()
        found = audit.audit_model(
            model or made(), samples, classes, eps, attacks=("FGSM",), **plan, **QUIET
        )
        return len(begun), found.folder

    first, folder = computed()
    assert first == 2
    assert computed() == (0, folder)
    other = made()
    with torch.no_grad():
        other.body.head.weight[0, 0] += 0.5
    changes = [
        {"model": other},
        {"samples": (x.flip(3), y)},
        {"samples": (x, y.flip(0))},
        {"classes": ("x", "y", "z")},
        {"eps": "5/255"},
        {"images": 12},
        {"scale": 2.0},
    ]
    folders = {folder}
    for change in changes:
        count, place = computed(**change)
        assert count >= 1, change
        folders.add(place)
    assert len(folders) == 1 + len(changes)


def test_the_model_is_left_as_it_was(undrawn):
    model = made().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = []
    asked = {"attacks": ("FGSM",), "name": "mine", "tell": told.append}
    audit.audit_model(model, photos(), CLASSES, "4/255", **asked)
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert told[0].startswith("mine: Net, ")
    assert "warning: BatchNorm came in train mode; the model is judged in eval mode" in told


def test_autoattack_on_a_sample_from_python(undrawn, monkeypatch):
    from tiny_runs import shorten_autoattack

    shorten_autoattack(monkeypatch)
    judged = audit.audit_model(made(), photos(), CLASSES, "1/255", images=0, **QUIET)
    assert set(judged.outcomes.predictions) == {"clean", "FGSM", "PGD-20", "CW-20", "Hunter"}
    assert len(judged.sampled.table) == 3
    card = json.loads((judged.folder / "card.json").read_text())
    assert card["sampled"]["images"] == 18


X = torch.rand(6, 3, 8, 8)
Y = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        ((X * 4 - 2, Y), r"images lie in \[.*\], not in \[0, 1\]: put the normalisation into"),
        ((X * 255, Y), r"not in \[0, 1\]: divide by 255"),
        (((X * 255).long(), Y), "images are floats in .*, not int64"),
        (((X[0] * 255).byte(), Y[:3]), r"images are of shape \(N, C, H, W\), not \(3, 8, 8\)"),
        ((X, Y.float()), "labels are whole numbers"),
        ((X, Y[:5]), r"labels are of shape \(6,\)"),
        ((X, Y + 1), r"labels lie in \[1, 3\]; of 3 classes they are 0 to 2"),
        ((X, Y - 1), r"labels lie in \[-1, 1\]; of 3 classes they are 0 to 2"),
        ((X[:0], Y[:0]), "there is no image to judge"),
        ([], "there is no image to judge"),
        ([{"x": X, "y": Y}], r"a batch of images is a pair \(x, y\), not a dict of 2"),
        ([(X, Y), (X[..., :4], Y)], "the batches differ in size or type: "),
        (7, r"images come as a DataLoader or as a pair \(x, y\), not int"),
    ],
)
def test_images_that_cannot_be_judged_are_one_line(samples, line):
    with pytest.raises((data.DataError, AttackError), match=line) as caught:
        audit.audit_model(made(), samples, CLASSES, "4/255", **QUIET)
    assert "\n" not in str(caught.value)
    assert not store.home().exists()


@pytest.mark.parametrize(
    ("model", "classes", "eps", "error", "line"),
    [
        (lambda x: x, CLASSES, "4/255", AttackError, "the model is an nn.Module, not function"),
        (made, CLASSES[:2], "4/255", data.DataError, "of 2 classes they are 0 to 1"),
        (made, (*CLASSES, "d"), "4/255", ModelError, "answers with 3 logits, not 4"),
        (made, "abc", "4/255", data.DataError, "classes are two or more different names"),
        (made, ("a", "a", "b"), "4/255", data.DataError, "two or more different names"),
        (made, CLASSES, 4, ConfigError, "eps in Linf is between 0 and 1, such as 8/255, not 4"),
        (made, CLASSES, "four", ConfigError, "'four' is not a number: write 0.1 or 8/255"),
    ],
)
def test_other_arguments_that_are_wrong_are_one_line(model, classes, eps, error, line):
    model = model() if model is made else model
    with pytest.raises(error, match=line) as caught:
        audit.audit_model(model, (X, Y), classes, eps, **QUIET)
    assert "\n" not in str(caught.value)
