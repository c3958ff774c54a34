"""A training is the plain loop: every number of it written out here once more, in forty lines."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import TINY, weights

from crat import data, store
from crat.attacks import PGD
from crat.config import TrainConfig
from crat.defenses import ClassStats
from crat.training.progress import Progress
from crat.training.run import Run, build_model
from crat.training.schedules import learning_rate
from crat.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("own_store")

IMAGES, BATCH, EPOCHS = 260, 64, 2  # 26 of each class, the last batch holds four
WARM_UP = TINY.but(epochs=EPOCHS, eps_warmup=1, average="ema_update")


def one_cycle(step):
    """0.1 at most: up over the first three of ten updates, down to 0 over the other seven."""
    return 0.1 * min((step + 1) / 3, (10 - step) / 7, 1)


def images_of(x):
    return x.float().div(255).contiguous(memory_format=torch.channels_last)


def by_class(y, values):
    return torch.zeros(10).index_add_(0, y, values.float())


def looped():
    """AT, PGD-2 within 0.1 (half of it in the first epoch), SGD 0.9 and 5e-4, EMA of each
    update: what it leaves.
    """
    images = data.load(WARM_UP.data)
    model = build_model(WARM_UP).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    average, epochs, step = {}, [], 0
    for epoch in range(EPOCHS):
        generator = torch.Generator().manual_seed(store.seed_for(0, epoch))
        order, model = torch.randperm(IMAGES, generator=generator), model.train()
        robust, loss, scale = torch.zeros(10), torch.zeros(10), (epoch + 1) / EPOCHS
        for chosen in order.split(BATCH):
            x, y = images_of(images.x_train[chosen]), images.y_train[chosen]
            attack = PGD(0.1 * scale, 0.025 * scale, 2, start="uniform", batch_norm="train")
            logits = model(attack(model, x, y, generator=generator, search="exact"))
            losses = F.cross_entropy(logits, y, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.param_groups[0]["lr"] = one_cycle(step)
            optimizer.step()
            step += 1
            keep = min(0.999, (1 + step) / (10 + step)) if average else 0.0
            for name, value in model.state_dict().items():
                old = average.get(name, value).clone()
                average[name] = (
                    keep * old + (1 - keep) * value if value.is_floating_point() else value.clone()
                )
            robust += by_class(y, logits.argmax(1) == y)
            loss += by_class(y, losses.detach())
        epochs.append((robust / 26, loss / 26, *validated(average, images), one_cycle(step - 1)))
    return model.state_dict(), average, epochs


def validated(state, images):
    """Clean accuracy, R_k and loss under PGD-10 of each class, of 5 images each."""
    model = build_model(WARM_UP).to(memory_format=torch.channels_last).eval()
    model.load_state_dict(state)
    x, y = images_of(images.x_valid), images.y_valid
    x_adv = PGD(0.1, 0.025, 10)(
        model,
        x,
        y,
        generator=torch.Generator().manual_seed(store.seed_for(0, 0)),
        search="exact",
    )
    with torch.no_grad():
        clean, attacked = model(x), model(x_adv)
    both = (clean.argmax(1) == y) & (attacked.argmax(1) == y)
    losses = F.cross_entropy(attacked, y, reduction="none")
    return by_class(y, clean.argmax(1) == y) / 5, by_class(y, both) / 5, by_class(y, losses) / 5


def test_a_training_is_the_plain_loop():
    last, average, epochs = looped()
    run = train(WARM_UP, progress="none")
    checkpoint = store.read_tensors(run.folder / "checkpoint.safetensors")[0]
    for part, expected in (("model", last), ("average", average)):
        for name, value in expected.items():
            torch.testing.assert_close(checkpoint[f"{part}/{name}"], value, msg=f"{part}/{name}")
    history = run.history().set_index(["epoch", "split"])
    for epoch, (robust, loss, clean, both, valid_loss, rate) in enumerate(epochs, 1):
        trained, valid = history.loc[(epoch, "train")], history.loc[(epoch, "valid")]
        assert trained.n.tolist() == [26] * 10
        assert valid.n.tolist() == [5] * 10
        assert trained.robust_acc.tolist() == pytest.approx(robust.tolist())
        assert trained.clean_acc.isna().all()  # AT never sees a clean logit in training
        assert trained.loss.tolist() == pytest.approx(loss.tolist(), rel=1e-4)
        assert valid.clean_acc.tolist() == pytest.approx(clean.tolist())
        assert valid.robust_acc.tolist() == pytest.approx(both.tolist())
        assert valid.loss.tolist() == pytest.approx(valid_loss.tolist(), rel=1e-4)
        assert [*trained.lr, *valid.lr] == pytest.approx([rate] * 20)
    scores = [float(both.mean() + both.min()) for *_, both, _, _ in epochs]
    best = run.card()["best"]
    assert best["epoch"] == 1 + scores.index(max(scores))
    assert best["score"] == pytest.approx(max(scores))
    assert best["average"] == pytest.approx(float(epochs[best["epoch"] - 1][3].mean()))
    assert run.card()["last"]["weights"] == store.fingerprint(weights(run))


@pytest.fixture
def trainer():
    return Trainer(Run.of(TINY), torch.device("cpu"))


def test_the_best_epoch_is_the_first_of_the_highest_average_plus_worst(trainer):
    """An equal one comes too late; a class without images counts neither in the average nor as
    the worst.
    """

    def judged(*robust, n=(10, 10, 0)):
        sums = [torch.tensor(v, dtype=torch.float32) for v in (n, (9, 9, 0), robust, (0, 0, 0))]
        return ClassStats(*sums, *[torch.zeros(3)] * 2, *[torch.zeros(3, 3)] * 2)

    chosen = []
    for epoch, robust in enumerate([(6, 2, 0), (4, 4, 0), (8, 0, 0), (4, 4, 0), (5, 4, 0)], 1):
        trainer.state.epochs_done = epoch
        trainer._choose(judged(*robust))
        chosen.append(
            (
                trainer.state.best["epoch"],
                trainer.state.best["score"],
                trainer.state.best["average"],
            )
        )
    expected = [(1, 0.6, 0.4), (2, 0.8, 0.4), (2, 0.8, 0.4), (2, 0.8, 0.4), (5, 0.85, 0.45)]
    assert chosen == [
        (epoch, pytest.approx(score), pytest.approx(mean)) for epoch, score, mean in expected
    ]


@pytest.mark.parametrize(("moved", "collapsed"), [(0, True), (4, True), (5, False), (6, False)])
def test_an_epoch_collapses_where_one_class_draws_over_nine_tenths(
    trainer, monkeypatch, moved, collapsed
):
    """Of 50 validation images 50, 46, 45 and 44 are called the first class: more than .9 of them
    is 46.
    """
    answers = torch.zeros(50, dtype=torch.long)
    answers[:moved] = torch.arange(1, 10).repeat(6)[:moved]
    stats = trainer._validate()[1]
    monkeypatch.setattr(trainer, "_validate", lambda: (F.one_hot(answers, 10).float(), stats))
    trainer.finish_epoch(0, stats, 1.0, Progress("none"))
    assert trainer.state.collapsed == ([1] if collapsed else [])


def test_awp_begins_behind_its_warm_up():
    """awp_warmup 2: the first two epochs are plain, the third moves the weights."""
    trainer, moves = Trainer(Run.of(TINY.but(awp=0.01, awp_warmup=2)), torch.device("cpu")), []
    x, y = trainer.images.x_train[:8].float() / 255, trainer.images.y_train[:8]
    weight = trainer.model.head.weight
    for trainer.state.epochs_done in range(4):
        before = weight.detach().clone()
        with trainer.step._weights_moved(x, x, y, 1.0):
            moves.append(((weight.detach() - before).norm() / before.norm()).item())
    assert moves == [0, 0, pytest.approx(0.01, rel=1e-3), pytest.approx(0.01, rel=1e-3)]


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("constant", 2, [0.5] * 8),
        ("piecewise", 8, [0.5] * 16 + [0.05] * 8 + [0.005] * 8),
        # 50 and 75 % lie within the second and third epoch
        ("piecewise", 3, [0.5] * 8 + [0.05] * 4),
        (
            "one_cycle",
            5,
            [0.5 * (t + 1) / 6 for t in range(6)] + [0.5 * (20 - t) / 14 for t in range(6, 20)],
        ),
        ("cosine", 2, [0.25 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]),
    ],
)
def test_the_rate_of_every_update(schedule, epochs, expected):
    config = TrainConfig(epochs=epochs, lr=0.5, schedule=schedule)
    assert [learning_rate(config, step, 4) for step in range(4 * epochs)] == pytest.approx(
        expected, rel=1e-12
    )
