"""The step: equal to the plain loop bit for bit, recorded or not; and what happens where recording
fails.
"""

import pytest
import tape
import torch
from method_table import METHODS, config

from crat import graphs
from crat.defenses import ClassStats
from crat.device import autocast
from crat.nets.folding import Folded
from crat.training import proof
from crat.training.proof import Way
from crat.training.run import Run
from crat.training.step import WORTH_COMPILING, Step
from crat.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_store")
CPU = torch.device("cpu")
RATES = (0.1, 0.05, 0.2)
OPTIONS = {
    "cfa-released": ("cfa", {"base": "trades", "released_passes": True}),
    "frl-released": ("frl", {"released_passes": True}),
    "spat-overwrites": ("spat", {"overwrites": True}),
    "robal-released": ("robal", {"released_passes": True, "released_attack": True}),
    "trades-passes": ("trades", {"passes": "adversarial clean clean"}),
    "fat-grows": ("fat", {"tau": None}),
    "alp-joint": ("alp", {"joint": True}),
}
EXTRA = {
    "pgd_at": {"average": "ema_update"},
    "trades": {"average": "ema_update", "awp": 0.01},
    "cfa": {"average": "fawa"},
}


def made(method, **changes):
    """A trainer of the method, with batches of two shapes and images of a few classes."""
    if method in OPTIONS:
        METHODS[method] = OPTIONS[method]
    changes = EXTRA.get(method, {}) | changes
    return Trainer(Run.of(config(method, **changes)), CPU, tell=lambda line: None)


def batches(trainer):
    """Three full batches and a short one."""
    x, y = trainer.images.x_train, trainer.images.y_train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    return [(x[part].float() / 255, y[part]) for part in order.split((24, 24, 24, 10, 178))[:4]]


def everything(trainer):
    """All tensors that a training changes, and the class-wise sums."""
    tensors, _ = trainer.state.state_dict()
    return {name: value.clone() for name, value in tensors.items()}


def plain_epoch(trainer, generator, scale):
    """The epoch as it was written before there were places and recordings."""
    state, train = trainer.state, trainer.config
    defense, model, optimizer = state.defense, state.model, state.optimizer
    total = None
    used = [(i, *b) for i, b in enumerate(batches(trainer)) for _ in range(defense.updates_a_batch)]
    for i, x, y in used:
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(CPU, train.dtype):
            x_adv = defense.craft(model, x, y, scale=scale, generator=generator)

        def loss_of_moved(x=x, x_adv=x_adv, y=y):
            with autocast(CPU, train.dtype):
                return defense.loss(model, x, x_adv, y)[0]

        moved = trainer.step._weights_moved(x, x_adv, y, 1.0)
        with moved:
            with autocast(CPU, train.dtype):
                loss, stats = defense.loss(model, x, x_adv, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.param_groups[0]["lr"] = RATES[i % 3]
            optimizer.step()
        defense.after_step(model, x, y)
        if train.average == "ema_update":
            state.average.update(model)
        total = stats if total is None else total + stats
    return total


def stepped_epoch(trainer, seed, scale):
    """The same epoch by the trainer's step."""
    trainer.step.begin(seed, scale)
    for i, (x, y) in enumerate(batches(trainer)):
        trainer.step(x, y, RATES[i % 3])
    return trainer.step.counted()


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value.nan_to_num(-1), second[name].nan_to_num(-1)), name


def judged(trainer):
    """Sums of a validation that weighs the classes unequally, so that policies move."""
    classes = trainer.images.n_classes
    right = torch.linspace(9, 1, classes)
    n = torch.full((classes,), 10.0)
    square = torch.full((classes, classes), 10.0 / classes)
    return ClassStats(n, right + 0.5, right, 10 - right, 10 - right, 11 - right, square, square)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [*METHODS, *OPTIONS])
def test_the_step_is_the_plain_loop_bit_for_bit(method, dtype):
    """Over two epochs, between which the share of eps and the policy change."""
    plain, ours = made(method, dtype=dtype), made(method, dtype=dtype)
    for trainer in (plain, ours):
        trainer.model.train()
    generator = torch.Generator()
    for epoch, scale in enumerate((0.5, 1.0)):
        torch.manual_seed(epoch)
        first = plain_epoch(plain, generator.manual_seed(epoch), scale)
        torch.manual_seed(epoch)
        second = stepped_epoch(ours, epoch, scale)
        assert_equal(vars(first), vars(second))
        assert_equal(everything(plain), everything(ours))
        for trainer, stats in ((plain, first), (ours, second)):
            trainer.state.defense.epoch_end(stats, judged(trainer))


@pytest.fixture
def gpu_manners(monkeypatch):
    """A CPU that records as a GPU does."""
    monkeypatch.setattr(graphs, "can_record", tape.can_record)
    monkeypatch.setattr(graphs, "record", tape.record)


def told_of(trainer):
    """The lines that a trainer's step tells from now on."""
    lines = []
    trainer.step.tell = lines.append
    return lines


def never_records(trainer):
    """The trainer, whose steps go their fastest way without a recording."""
    step = trainer.step
    step.way = Way(folded=bool(step.ways) and step.ways[0].folded)
    step.ways = []
    return trainer


RECORDED = [(method, "bfloat16") for method in [*METHODS, *OPTIONS]]
RECORDED += [(method, "float32") for method in ("pgd_at", "trades", "cfa")]


@pytest.fixture
def any_rounding(monkeypatch):
    """Of a few images the rounding of a fold may be as large as the step."""
    monkeypatch.setattr(proof, "ALLOWED", dict.fromkeys(proof.ALLOWED, 1e6))


@pytest.mark.parametrize(("method", "dtype"), RECORDED)
def test_a_recorded_step_is_the_step(method, dtype, gpu_manners, any_rounding):
    """The recordings of the first epoch are replayed in the second, with other images, random
    numbers, rates and policies.
    """
    recorded, ours = made(method, dtype=dtype), never_records(made(method, dtype=dtype))
    lines = told_of(recorded)
    for epoch, scale in enumerate((0.5, 1.0)):
        for trainer in (recorded, ours):
            trainer.model.train()
            torch.manual_seed(epoch)
            stats = stepped_epoch(trainer, epoch, scale)
            trainer.state.defense.epoch_end(stats, judged(trainer))
        assert lines == []
        assert_equal(everything(recorded), everything(ours))
    assert lines == []
    steps = recorded.step.steps.values()
    assert all(step.replay is not None and step.replay != step.work for step in steps)


def failing(fault):
    """A recording in which something is wrong: the name says what."""

    def record(work, device, generators=(), pool=None):
        if fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        replay, result = tape.record(work, device, generators, pool)
        drawn = [generator.get_state() for generator in generators]

        def nothing():
            pass

        def noise_of_the_recording():
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)
            replay()

        wrong = {"does nothing": nothing, "draws the same noise": noise_of_the_recording}
        return wrong[fault], result

    return record


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("raises", "operation not permitted when stream is capturing"),
        ("does nothing", "it draws other random numbers"),
        ("draws the same noise", "it draws other random numbers"),
    ],
)
def test_a_recording_that_is_wrong_is_given_up_with_a_line(fault, why, gpu_manners, monkeypatch):
    """And the training is that of the plain step."""
    monkeypatch.setattr(graphs, "record", failing(fault))
    trainer, ours = made("pgd_at", dtype="float32"), never_records(made("pgd_at", dtype="float32"))
    lines = told_of(trainer)
    for each in (trainer, ours):
        each.model.train()
        stepped_epoch(each, 0, 1.0)
    assert_equal(everything(trainer), everything(ours))
    assert lines == [f"the training step is eager, not recorded: {why}"]


def test_a_method_of_ones_own_that_counts_in_python_is_found_out(gpu_manners):
    """A number of Python's is the recording's for ever; the second step shows that it moves."""
    trainer = made("pgd_at", dtype="float32")
    lines, calls = told_of(trainer), []
    loss = trainer.defense.loss

    def counting(model, x, x_adv, y):
        calls.append(1)
        value, stats = loss(model, x, x_adv, y)
        return value * len(calls) ** 2, stats

    trainer.defense.loss = counting
    trainer.model.train()
    stepped_epoch(trainer, 0, 1.0)
    assert len(lines) == 1
    assert lines[0].startswith("the training step is eager, not recorded: the weights differ by ")


def test_a_fold_that_changes_the_answer_is_given_up_alone(gpu_manners, monkeypatch):
    """The step is still recorded, with BatchNorm as it is."""
    monkeypatch.setattr(Folded, "forward", lambda self, x: -self.net(x))
    trainer = made("trades", dtype="float32")
    lines = told_of(trainer)
    trainer.model.train()
    stepped_epoch(trainer, 0, 1.0)
    assert lines == [
        "BatchNorm is not folded for the attack: it changes a logit by 200.0% of the largest"
    ]
    assert trainer.step.ways == [Way(recorded=True)]


def test_what_cannot_be_traced_is_not_folded(gpu_manners, monkeypatch):
    def refuse(model, dtype):
        raise TypeError("control flow that depends on the input")

    monkeypatch.setattr("crat.training.step.foldable", refuse)
    lines = []
    trainer = Trainer(Run.of(config("trades")), CPU, tell=lines.append)
    assert trainer.step.ways == [Way(recorded=True)]
    assert lines == [
        "BatchNorm is not folded for the attack: control flow that depends on the input"
    ]


def test_an_attack_that_waits_for_its_images_is_never_recorded(gpu_manners):
    lines = []
    trainer = Trainer(Run.of(config("cfa-fat", batch_norm="moving")), CPU, tell=lines.append)
    assert trainer.step.ways == []
    assert lines == [
        "the training step of cfa is eager: its attack ends when no image goes on any more"
    ]


@pytest.mark.parametrize(
    ("operations", "compiles"), [(WORTH_COMPILING / 2, False), (WORTH_COMPILING, True)]
)
def test_a_long_training_compiles(operations, compiles, gpu_manners):
    trainer = made("trades")
    ways = Step(
        trainer.state, trainer.config, CPU, 10, operations=operations, tell=lambda line: None
    ).ways
    assert (Way(recorded=True, folded=True, compiled=True) in ways) == compiles
    assert ways[-2:] == [Way(recorded=True, folded=True), Way(recorded=True)]


def test_a_compiled_step_is_the_step(gpu_manners, any_rounding, monkeypatch):
    """Dynamo's own tracing without a C++ compiler: modes, gradients and weights that an attack
    exchanges are what matters.
    """
    compiled = []

    def compile_by_dynamo(model):
        compiled.append(model)
        return torch.compile(model, backend="eager")

    monkeypatch.setattr("crat.training.step.compiled", compile_by_dynamo)
    by_compiling = made("trades", dtype="bfloat16")
    by_compiling.step.ways.insert(0, Way(recorded=True, folded=True, compiled=True))
    ours = never_records(made("trades", dtype="bfloat16"))
    lines = told_of(by_compiling)
    for trainer in (by_compiling, ours):
        trainer.model.train()
        stepped_epoch(trainer, 0, 1.0)
    assert lines == []
    assert_equal(everything(by_compiling), everything(ours))
    assert {type(model) for model in compiled} == {type(by_compiling.model), Folded}


def test_the_short_last_batch_has_its_own_recording(gpu_manners):
    trainer = made("pgd_at", dtype="float32")
    trainer.model.train()
    stepped_epoch(trainer, 0, 1.0)
    shapes = [(shape[0], moved) for shape, moved in trainer.step.steps]
    assert shapes == [(24, False), (10, False)]


def test_a_loss_that_is_not_finite_is_noted_by_its_first_batch(gpu_manners):
    trainer = made("pgd_at", dtype="float32")
    told_of(trainer)
    trainer.model.train()
    trainer.step.begin(0, 1.0)
    for i, (x, y) in enumerate(batches(trainer) + batches(trainer)):
        trainer.step(x * (torch.nan if i >= 5 else 1), y, 0.1)
    assert int(trainer.step.first_bad) == 5
    assert int(trainer.step.done) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [*METHODS, *OPTIONS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_every_method_is_recorded_and_nothing_waits(method, dtype, any_rounding):
    if method in OPTIONS:
        METHODS[method] = OPTIONS[method]
    changes = EXTRA.get(method, {}) | {"dtype": dtype}
    lines = []
    trainer = Trainer(Run.of(config(method, **changes)), torch.device("cuda"), tell=lines.append)
    lines.clear()  # of a teacher
    trainer.model.train()
    stepped_epoch(trainer, 0, 0.5)
    stepped_epoch(trainer, 1, 1.0)
    assert lines == []
    recorded = batches(trainer)
    trainer.step.begin(2, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in recorded:
            trainer.step(x, y, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert int(trainer.step.done) == len(recorded)
