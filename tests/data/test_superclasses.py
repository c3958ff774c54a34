"""Superclasses: table, blocks, where errors end; notebook 01 on other data sets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crat import data, plots
from crat.analysis import metrics
from crat.config import PROFILES, ConfigError, Selection, profile
from crat.data import superclasses
from crat.data.registry import DATASETS
from crat.nets import models
from crat.outcomes.cache import Outcomes
from crat.papers.common import sweep
from crat.papers.evidence import Evidence
from crat.papers.tian2021 import TRAINED, plan
from crat.plots import methods as plots_methods
from crat.training.run import Run

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_tian2021_class_wise_robustness.ipynb"
DATA_SETS = ("mnist", "cifar10", "cifar100", "svhn", "stl10")  # the paper's, and ImageNet


@pytest.mark.parametrize("name", superclasses.GROUPS)
def test_every_class_has_one_superclass(name):
    groups, of = superclasses.superclasses(name)
    members = [member for group in superclasses.GROUPS[name].values() for member in group]
    assert sorted(members) == sorted(DATASETS[name].classes)
    assert len(groups) == len(set(of.tolist())) == of.max() + 1
    for label, member in enumerate(DATASETS[name].classes):
        assert member in superclasses.GROUPS[name][groups[of[label]]]


def test_cifar100_has_its_own_and_digits_have_none():
    groups, of = superclasses.superclasses("cifar100")
    assert groups == tuple(DATASETS["cifar100"].superclasses)
    assert of[:4].tolist() == [4, 1, 14, 8]  # as in CIFAR-100's own files (test_data.py has all)
    with pytest.raises(
        ConfigError, match=r"mnist has no superclasses; those that have: fashion_mnist_mini"
    ):
        superclasses.superclasses("mnist")


def test_blocks_and_errors_by_hand():
    of = [0, 0, 1]
    matrix = np.array([[5, 3, 2], [1, 8, 1], [4, 0, 6]])
    assert superclasses.blocks(matrix, of).tolist() == [[17, 3], [4, 6]]
    within, total, chance = superclasses.errors_within(matrix, of)
    assert (within, total) == (4, 11)  # 3 + 1 of 5 + 2 + 4
    assert chance == pytest.approx((5 * 1 / 2 + 2 * 1 / 2 + 4 * 0) / 11)
    assert np.isnan(superclasses.errors_within(np.eye(3, dtype=int), of)[2])
    assert matrix[0, 0] == 5  # left alone


@given(st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=6, max_size=6))
def test_blocks_are_the_confusion_matrix_of_superclasses(rows):
    of, matrix = np.array([2, 0, 1, 0, 2, 2]), np.array(rows)
    y, pred = (np.repeat(axis, matrix.ravel()) for axis in np.indices(matrix.shape).reshape(2, -1))
    if y.size:
        assert (superclasses.blocks(matrix, of) == metrics.confusion(of[y], of[pred], 3)).all()
    within, total, _ = superclasses.errors_within(matrix, of)
    assert (within, total) == (((of[y] == of[pred]) & (y != pred)).sum(), (y != pred).sum())


def test_errors_that_end_anywhere_end_inside_by_chance():
    rng, of = np.random.default_rng(0), superclasses.superclasses("cifar100")[1]
    y = np.repeat(np.arange(100), 1000)
    pred = (y + rng.integers(1, 100, y.size)) % 100
    within, total, chance = superclasses.errors_within(metrics.confusion(y, pred, 100), of)
    assert chance == pytest.approx(4 / 99)
    assert within / total == pytest.approx(chance, abs=0.002)


def test_disparity_adds_up():
    acc, of = np.random.default_rng(0).random((3, 10)), superclasses.superclasses("cifar10")[1]
    between, within = superclasses.disparity(acc, of)
    assert np.allclose(between + within, acc.var(-1))
    assert np.allclose(superclasses.disparity([0.2, 0.2, 0.8], [0, 0, 1])[1], 0)
    assert np.allclose(superclasses.disparity([0.2, 0.8, 0.5], [0, 0, 1])[0], 0)


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("chosen", PROFILES)
def test_the_plan_of_each_data_set_can_be_trained(chosen, name):
    runs = plan(chosen, 3, Selection(name))
    for key, config in runs.items():
        run = Run.of(config)  # resolves: protocol, method, model
        assert run.config.data.name == name, key
        assert (run.config.train.eps, run.config.train.steps) == (
            DATASETS[name].protocol.eps,
            DATASETS[name].protocol.steps,
        ), key
        images = config.data
        assert (images.train_per_class or 1) + images.valid_per_class <= DATASETS[
            name
        ].smallest_class, key
        data.resolve_augment(images)
    shape, n_classes = DATASETS[name].image_shape, DATASETS[name].n_classes
    network = models.build(runs["live"].model, n_classes, shape).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, *shape)).shape == (2, n_classes)
    assert runs["live"].train.seed == 3
    classes = DATASETS[name].removed_classes
    seeds = {c: (0,) if c == classes[-1] else (0, 1, 2) for c in classes}
    removed = {f"without-{c}-s{s}" for c in classes for s in seeds[c]}
    assert removed == {key for key in runs if key.startswith("without")}
    assert {f"{m}-s{s}" for m in TRAINED for s in (0, 1, 2)} <= runs.keys()


def test_a_data_set_by_its_name_is_the_same_runs_on_it():
    for chosen in ("quick", "laptop"):
        named, usual = plan(chosen, 0, Selection("fashion_mnist")), plan(chosen)
        main = {key for key in usual if key.startswith((*TRAINED, "without"))}
        assert {key: named[key] for key in main} == {key: usual[key] for key in main}
        # the sweeps, too
        assert {config.data.name for config in named.values()} == {"fashion_mnist"}
    papers = {key: run for key, run in plan("paper").items() if not key.startswith("mnist: ")}
    assert plan("paper", 0, Selection("cifar10")) == papers
    laptop = plan("laptop")
    # nothing of it is changed
    assert laptop["pgd_at-s1"] == profile("laptop").but(defense="pgd_at", seed=1)
    assert laptop["AT-s0"] == sweep("laptop", Selection()).but(defense="pgd_at")
    shipped = plan("quick", 0, Selection("fashion_mnist_mini"))
    # nothing is published: its own settings
    assert shipped["pgd_at-s0"] == profile("quick").but(defense="pgd_at")


def test_data_that_cannot_be_had_say_so(tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match="unknown data set 'cifar'; known: fashion_mnist_mini, mnist"
    ):
        Selection("cifar")
    monkeypatch.setenv("CRAT_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"cifar100.*crat data fetch cifar100"):
        data.load(plan("quick", 0, Selection("cifar100"))["live"].data)


def hundred_classes(seed, towards=0.7):
    """Outcomes on CIFAR-100's classes: most errors end in their superclass, more under attack."""
    rng, of = np.random.default_rng(seed), superclasses.superclasses("cifar100")[1]
    y = np.repeat(np.arange(100), 20)
    wrong = (y + rng.integers(1, 100, y.size)) % 100
    near = np.array([rng.choice(np.flatnonzero((of == of[k]) & (np.arange(100) != k))) for k in y])
    wrong = np.where(rng.random(y.size) < towards, near, wrong)
    clean = np.where(rng.random(y.size) < 0.6, y, wrong)
    attacked = np.where(rng.random(y.size) < 0.5, clean, wrong)
    predictions = {"clean": clean, "PGD-20": attacked, "T=1": attacked}
    return Outcomes("test", DATASETS["cifar100"].classes, y, {}, predictions, {})


def test_the_cells_of_the_notebook_on_a_hundred_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CRAT_FIGURES", str(tmp_path))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = [
        "".join(cell["source"]) for cell in cells if "synthetic" in cell["metadata"].get("tags", [])
    ]
    seen = {f"{m}-s{s}": hundred_classes(s) for m in TRAINED for s in (0, 1, 2)}
    test = replace(Evidence.of("01", "quick", data="cifar100"), seen=seen)
    cell = {
        "judged": test,
        "test": test,
        "valid": test,
        "PGD": "PGD-20",
        "dataset": "cifar100",
        "STEM": "01",
        "np": np,
        "pd": pd,
    }
    cell |= {"plots": plots, "metrics": metrics, "superclasses": superclasses}
    cell |= {"y": seen["pgd_at-s0"].y, "names": DATASETS["cifar100"].classes}
    for source in sources:
        exec(source, cell)
    plots.plt.close("all")
    within, every, chance = cell["inside"]["pgd_at", "PGD-20"]
    assert (within / every).mean() == pytest.approx(0.7 + 0.3 * 4 / 99, abs=0.05)
    assert chance == pytest.approx(4 / 99)
    table = pd.read_csv(tmp_path / "01" / "superclasses.csv")
    assert list(table["class"]) == list(superclasses.GROUPS["cifar100"])
    assert (table.n == 100).all()
    assert table.robust_acc.mean() == pytest.approx(
        metrics.class_accuracy(cell["y"], cell["at"], 100).mean(), abs=1e-5
    )
    blocks = pd.read_csv(tmp_path / "01" / "superclass_confusion.csv")
    assert blocks.groupby(["matrix", "true"]).share.sum().to_numpy() == pytest.approx(np.ones(40))
    assert "aquatic_mammals: beaver, dolphin, otter, seal, whale" in capsys.readouterr().out


def test_codat_is_drawn():
    p = pd.DataFrame(
        {
            "rho": [0, 0, 1, 1],
            "class": list("abab"),
            "loss": [1.0, 2, 1, 2],
            "p": [0.5, 0.5, 0.1, 0.9],
        }
    )
    worth = pd.DataFrame({"rho": [0.0, 1.0], "exact": [1.5, 1.9], "closed_form": [1.5, 2.0]})
    left, right = plots_methods.worst_distributions(p, worth).axes
    # by rho; the class with the larger loss stands first
    shares = [points.get_offsets()[:, 0].tolist() for points in left.collections]
    assert shares == [[50, 50], [90, 10]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[1.5, 1.9], [1.5, 2.0]]
    columns = {"value": [0.7, 0.6], "low": [0.6, 0.5], "high": [0.8, 0.65]}
    radii = pd.DataFrame({"what": ["average"] * 2, "rho": [1.0, 0.0]} | columns)
    (ax,) = plots_methods.radius_curves(radii).axes
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([60, 70])  # by radius
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1"]
    plots.plt.close("all")
