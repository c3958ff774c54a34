"""Splits, subsets, long tails and batches, on the shipped images."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crat import data
from crat.config import ConfigError, DataConfig
from crat.data import DATASETS, Batches, DataError, images, load, long_tail, sources, superclasses


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


def test_the_shipped_images_are_what_they_were():
    images = load()
    assert (images.n_classes, images.image_shape, images.name) == (
        10,
        (1, 28, 28),
        "fashion_mnist_mini",
    )
    table = images.counts().pivot(index="class", columns="split", values="n")
    assert (table.train == 700).all()
    assert (table.valid == 100).all()
    assert (table.test == 200).all()
    assert images.x_train.dtype == torch.uint8
    assert images.y_train.dtype == torch.int64
    # A change here changes every published result: numpy's or our drawing of the split is no longer
    # the same.
    assert digest(images.y_train) == "99f88b41a7db4c6c"
    assert digest(images.x_valid) == "40c8ebf70a285a5c"


def test_the_first_split_takes_the_first_of_each_class_in_file_order():
    images, whole = (
        load(DataConfig(split="first", valid_per_class=3)),
        sources.read("fashion_mnist_mini"),
    )
    for k in range(10):
        x = torch.from_numpy(whole["x_train"][whole["y_train"] == k]).permute(0, 3, 1, 2)
        assert torch.equal(images.x_valid[images.y_valid == k], x[:3])
        assert torch.equal(images.x_train[images.y_train == k], x[3:])


def test_class_removal_renumbers_and_leaves_the_other_classes_as_they_were():
    whole, part = load(), load(DataConfig(drop_classes=(6, 0)))
    assert part.classes == tuple(c for c in whole.classes if c not in ("Shirt", "T-shirt/top"))
    assert part.original_labels == (1, 2, 3, 4, 5, 7, 8, 9)
    for split in ("train", "valid", "test"):
        x, y = getattr(whole, f"x_{split}"), getattr(whole, f"y_{split}")
        kept = torch.isin(y, torch.tensor(part.original_labels))
        assert torch.equal(getattr(part, f"x_{split}"), x[kept])
        assert torch.equal(torch.tensor(part.original_labels)[getattr(part, f"y_{split}")], y[kept])


def test_a_smaller_subset_is_part_of_a_larger_one_and_keeps_the_validation():
    small, large = load(DataConfig(train_per_class=5)), load(DataConfig(train_per_class=50))
    rows = {x.numpy().tobytes() for x in large.x_train}
    assert all(x.numpy().tobytes() in rows for x in small.x_train)
    assert torch.equal(small.x_valid, large.x_valid)
    assert not torch.equal(small.x_valid, load(DataConfig(split_seed=1)).x_valid)


def test_a_long_tail_thins_the_training_images_only():
    images = load(DataConfig(imbalance_ratio=50, drop_classes=(9,)))
    n = images.y_train.bincount().tolist()
    assert n == long_tail(700, 9, 50)
    assert (n[0], n[-1]) == (700, 14)
    assert images.y_test.bincount().tolist() == [200] * 9


@given(st.integers(1, 9000), st.integers(1, 300), st.floats(1, 500))
def test_long_tails_fall_from_n_max_to_n_max_over_the_ratio(n_max, n_classes, ratio):
    if n_classes > 1 and n_max / ratio < 0.999:
        with pytest.raises(ConfigError, match="leave the last empty"):
            long_tail(n_max, n_classes, ratio)
    elif n_classes == 1 or n_max / ratio > 1:
        sizes = long_tail(n_max, n_classes, ratio)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == n_max
        assert n_classes == 1 or abs(sizes[-1] - n_max / ratio) <= 1


def test_long_tails_of_the_literature():
    # CIFAR-10-LT, imbalance ratio 0.02
    assert long_tail(5000, 10, 50)[::3] == [5000, 1357, 368, 100]
    assert long_tail(500, 100, 10)[-1] == 50


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(12, 30), min_size=3, max_size=6),
    split=st.sampled_from(["first", "stratified"]),
    valid=st.integers(1, 6),
    train=st.one_of(st.none(), st.integers(1, 6)),
    drop=st.sets(st.integers(0, 2), max_size=1),
    seed=st.integers(0, 5),
)
def test_splits_are_disjoint_exact_and_leave_out_what_is_dropped(
    sizes, split, valid, train, drop, seed
):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    config = DataConfig(
        split=split, valid_per_class=valid, train_per_class=train, drop_classes=tuple(drop)
    )
    kept = [k for k in range(len(sizes)) if k not in drop]
    trained, validated = images._split(y, kept, tuple(map(str, sizes)), config)
    assert not set(trained) & set(validated)
    assert list(trained) == sorted(set(trained))
    for k, size in enumerate(sizes):
        assert (y[validated] == k).sum() == (k in kept) * valid
        assert (y[trained] == k).sum() == (k in kept) * (size - valid if train is None else train)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DataConfig(valid_per_class=800),
            r"class 0 \(T-shirt/top\) .* has 800 .* 800 for validation and 1 for training",
        ),
        (DataConfig(train_per_class=701), "not the 100 for validation and 701 for training"),
        (DataConfig(imbalance_ratio=1000), "imbalance ratio 1000 leave the last empty"),
        (DataConfig(drop_classes=(3, 10)), r"among 0 to 9: \[10\] are not its labels"),
        (DataConfig(drop_classes=tuple(range(9))), "fewer than two classes"),
        (DataConfig("imagenet"), "imagenet is not in .*: put imagenet into"),
    ],
)
def test_what_cannot_be_split_is_said_in_one_line(config, message):
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load(config)
    assert "\n" not in str(caught.value)


def test_no_training_images_are_refused_at_once():
    with pytest.raises(ConfigError, match="train_per_class must be at least 1, not 0"):
        DataConfig(train_per_class=0)


def test_superclasses_of_cifar100():
    names, of = superclasses.superclasses("cifar100")
    classes = DATASETS["cifar100"].classes
    # The fine-to-coarse table as it stands in CIFAR-100's own files.
    known = (
        "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 "
        "14 16 9 11 5 5 19 8 8 15 "
        "13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 "
        "15 13 16 19 2 4 6 19 5 "
        "5 8 19 18 1 2 15 6 0 17 8 14 13"
    )
    assert of.tolist() == list(map(int, known.split()))
    assert (len(names), len(classes), np.bincount(of).tolist()) == (20, 100, [5] * 20)
    assert names[of[classes.index("maple_tree")]] == "trees"


def test_augmentations_by_data_set():
    chosen = {
        name: data.resolve_augment(DataConfig(name))
        for name in ("mnist", "fashion_mnist", "svhn", "cifar10")
    }
    assert chosen == {
        "mnist": "none",
        "fashion_mnist": "none",
        "svhn": "crop",
        "cifar10": "crop_flip",
    }
    assert data.resolve_augment(DataConfig("cifar10", augment="crop")) == "crop"
    with pytest.raises(ConfigError, match="svhn has no flips"):
        data.resolve_augment(DataConfig("svhn", augment="crop_flip"))


def test_to_moves_every_tensor():
    moved = load().to("meta")
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}


def numbered(n=50, classes=5):
    """Image i is filled with i, its label is i % classes."""
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, 8, 8).contiguous()
    return x, torch.arange(n) % classes


def test_an_epoch_holds_every_image_once_with_its_label():
    x, y = numbered()
    batches = Batches(x, y, 16, seeded())
    epoch = list(batches)
    assert [len(b) for b, _ in epoch] == [16, 16, 16, 2]
    assert len(batches) == 4
    images, labels = (torch.cat(part) for part in zip(*epoch, strict=True))
    numbers = (images[:, 0, 0, 0] * 255).round().long()
    assert images.dtype == torch.float32
    assert sorted(numbers.tolist()) == list(range(50))
    assert torch.equal(labels, numbers % 5)
    again = torch.cat([b for b, _ in batches])[:, 0, 0, 0]
    assert not torch.equal(again * 255, numbers.float()), "the next epoch has another order"


def test_pixels_are_divided_by_255_exactly():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    [(images, _)] = Batches(x, torch.zeros(1, dtype=torch.int64), 4, shuffle=False)
    assert torch.equal(images, x.float() / 255)
    assert x.max() == 255, "the images themselves are left alone"


def test_evaluation_order_and_the_last_short_batch():
    x, y = numbered()
    labels = [b for _, b in Batches(x, y, 16, shuffle=False)]
    assert torch.equal(torch.cat(labels), y)
    assert [len(b) for _, b in Batches(x, y, 16, seeded(), drop_last=True)] == [16, 16, 16]
    assert list(Batches(x, y, 64, seeded(), drop_last=True)) == []


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_the_seed_decides_an_epoch(augment):
    images = load(DataConfig(train_per_class=4))
    state = torch.random.get_rng_state()
    one, two, other = (
        torch.cat([x for x, _ in Batches(images.x_train, images.y_train, 16, seeded(s), augment)])
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_padding_decides_the_border():
    x, y = torch.full((64, 1, 16, 16), 200, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    least = {
        p: next(iter(Batches(x, y, 64, seeded(), "crop", p)))[0].min().item()
        for p in ("reflect", "zero")
    }
    assert least == {"reflect": pytest.approx(200 / 255), "zero": 0}


def test_class_probabilities_choose_the_classes_and_then_any_image():
    y = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    x = torch.arange(1000).remainder(256).to(torch.uint8)[:, None, None, None].expand(1000, 1, 8, 8)
    probs = torch.tensor([0.2, 0.0, 0.8])
    drawn = torch.cat([labels for _, labels in Batches(x, y, 100, seeded(), class_probs=probs)])
    n = drawn.bincount(minlength=3)
    assert len(drawn) == 1000
    assert n[1] == 0
    assert abs(n[2].item() - 800) < 60  # 4.7 standard deviations
    images = torch.cat([x for x, _ in Batches(x, y, 100, seeded(), class_probs=probs)])
    assert len(set((images[drawn == 2, 0, 0, 0] * 255).round().tolist())) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": None}, "need a torch.Generator"),
        ({"generator": None, "shuffle": False, "augment": "crop"}, "need a torch.Generator"),
        ({"augment": "auto"}, "unknown augmentation 'auto'; known: none, crop, crop_flip"),
        ({"batch_size": 0}, "by 0"),
        ({"y": torch.zeros(3)}, "3 labels"),
        ({"x": torch.zeros(50, 1, 8, 8)}, "float32 images"),
    ],
)
def test_what_cannot_be_batched_is_said(changes, message):
    x, y = numbered()
    with pytest.raises(ConfigError, match=message):
        Batches(**{"x": x, "y": y, "batch_size": 8, "generator": seeded(), **changes})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_batch_waits_for_the_gpu(device):
    images = load().to("cuda")
    batches = iter(
        Batches(
            images.x_train, images.y_train, 64, torch.Generator(device).manual_seed(0), "crop_flip"
        )
    )
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x, _ = next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.is_cuda
