"""Several processes, one training: the numbers of a single one, whatever a network or a loss
takes from its batch.
"""

import json
import os
import re
import socket
import subprocess
import sys

import pandas as pd
import pytest
import torch
from tiny_teacher import taught

from crat import distributed, store
from crat.attacks.noise import Share, normal, source, uniform
from crat.config import RunConfig
from crat.defenses import DEFENSES, preset
from crat.training.run import Run

pytestmark = pytest.mark.usefixtures("own_store")

# Trains in float64: there the sign of a gradient, which makes a step of a rounding, is not decided
# by one.
DRIVER = """
import json, os, sys, torch
from crat import data, distributed
from crat.training import trainer as train
from crat.config import RunConfig
torch.set_num_threads(1)
plain = data.Batches.__iter__
data.Batches.__iter__ = lambda self: ((x.double(), y) for x, y in plain(self))

class Exact(train.Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.double(), self.judged.double()
        if self.teacher is not None:
            self.teacher.double()
        self.defense.load_state_dict({k: v.double() if v.is_floating_point() else v
                                      for k, v in self.defense.state.items()})

    def _logits(self, x, y, attack):
        return super()._logits(x.double() / 255, y, attack)

train.Trainer, errors = Exact, {}
for name, settings in json.loads(sys.argv[1]).items():
    try:
        train.train(RunConfig().but(**settings), progress="none", device="cpu")
    except train.TrainingError as error:
        errors[name] = str(error)
with open(os.path.join(os.environ["CRAT_RUNS"], f"errors-{distributed.rank()}"), "w") as file:
    json.dump(errors, file)
distributed.leave()
os._exit(0)  # a thread of gloo may outlive the interpreter, and then aborts the process
"""


def together(driver, processes, folder, *arguments):
    """Runs a script in so many processes that find each other as torchrun lets them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(exist_ok=True)
    common = {
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "CRAT_RUNS": folder,
    }
    environments = [
        os.environ | {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for rank in range(processes)
    ]
    command = [sys.executable, "-c", driver, *arguments]
    children = [
        subprocess.Popen(command, env=e, stderr=subprocess.PIPE, text=True) for e in environments
    ]
    try:
        for child in children:
            _, told = child.communicate(timeout=1200)
            assert child.returncode == 0, told
    finally:
        for child in children:
            child.kill()


# Batches of 23 leave one image for the last step of an epoch: of several ranks all but one have
# none there.
TINY = dict(
    model="small_cnn",
    width=4,
    train_per_class=7,
    valid_per_class=3,
    epochs=2,
    steps=2,
    batch_size=23,
    lr=0.01,
    dtype="float32",
)
CFA_WHOLE = {"base": "trades", "released_passes": True}
CHOICES = {
    "preact_resnet18": {"model": "preact_resnet18", "width": 2, "epochs": 1},
    "dropout": {"model": "mnist_small_cnn", "width": None, "defense": "standard"},
    "dropout in two halves": {
        "model": "mnist_small_cnn",
        "width": None,
        "defense": "label_smoothing",
        "steps": 1,
    },
    "moving": {"batch_norm": "moving"},
    "fat moving": {"defense": "fat", "batch_norm": "moving", "options": {"tau": 0}, "steps": 6},
    "trades train": {"defense": "trades", "batch_norm": "train", "average": "ema_update"},
    "cfa whole": {
        "defense": "cfa",
        "average": "fawa",
        "average_start": 0,
        "options": CFA_WHOLE,
        "awp": 0.01,
    },
    "swa": {"average": "swa", "average_start": 0},
    "faal mart": {"defense": "faal", "options": {"base": "mart"}, "awp": 0.01},
    "codat trades": {
        "defense": "codat",
        "options": {"base": "trades", "rho": 2.0},
        "batch_norm": "train",
    },
    "alp joint": {"defense": "alp", "options": {"joint": True}},
    "reat tail": {"defense": "reat", "imbalance_ratio": 5.0, "batch_norm": "train"},
    "la": {"defense": "label_augmentation", "options": {"adversarial": False}},
    "one delta": {
        "defense": "universal_at",
        "options": {"class_wise": False},
        "batch_norm": "train",
    },
    "fair rslad": {"defense": "fair_ard", "options": {"base": "rslad"}},
    "absld perturbed": {"defense": "absld", "awp": 0.01},
    "too fast": {"lr": 1e200, "epochs": 1},
}
# a gradient of a gradient is none through statistics that processes share: it refuses them
ALONE = {"grad_align"}
TOGETHER = [name for name in DEFENSES if name not in ALONE]
CASES = {name: preset(name) | {"eps_warmup": 0} for name in TOGETHER} | CHOICES
IN_THREE = ("frl", "codat trades", "reat tail", "dropout in two halves")
# Half of the digits: a rounding of 2^-52 may grow tenfold in each of 8 updates. An image more or
# less in a mean, another sign, another draw change a weight by 1e-4 and more.
HALF = 2.0**-26


def settings_of(name):
    """The settings of a case; its teacher, where it has one, is kept in the present store."""
    settings = TINY | CASES[name]
    name_of_teacher = taught(RunConfig().but(**settings)).train.teacher
    return settings | ({"teacher": name_of_teacher} if name_of_teacher else {})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Where one, two and three processes trained."""
    folder = tmp_path_factory.mktemp("ranks")
    for processes in (1, 2, 3):
        names = [name for name in CASES if processes < 3 or name in IN_THREE]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CRAT_RUNS", str(folder / str(processes)))
            cases = {name: settings_of(name) for name in names}
        together(DRIVER, processes, folder / str(processes), json.dumps(cases))
    return {processes: folder / str(processes) for processes in (1, 2, 3)}


def trained(name, folder):
    """Tensors and what else is in the checkpoint, the history."""
    run = folder / Run.of(RunConfig().but(**settings_of(name)), "cpu").name
    return *store.read_tensors(run / "checkpoint.safetensors"), pd.read_csv(run / "history.csv")


@pytest.mark.parametrize(
    ("name", "processes"),
    [(name, 2) for name in CASES if name != "too fast"] + [(name, 3) for name in IN_THREE],
)
def test_several_processes_give_the_numbers_of_one(stores, name, processes):
    expected, said, history = trained(name, stores[1])
    tensors, also, rows = trained(name, stores[processes])
    assert tensors["model/head.weight"].dtype == torch.float64
    assert tensors.keys() == expected.keys()
    for part, value in tensors.items():
        torch.testing.assert_close(
            value, expected[part], rtol=HALF, atol=HALF, msg=lambda m, part=part: f"{part}: {m}"
        )
    counted = ["epoch", "split", "class", "n", "clean_acc", "robust_acc"]
    assert rows[counted].equals(history[counted])  # no image is counted twice, and none left out
    pd.testing.assert_frame_equal(rows, history, rtol=HALF, atol=HALF)
    assert (also["best"]["epoch"], also["gate"]) == (said["best"]["epoch"], said["gate"])


def test_several_processes_fail_as_one_and_all_of_them(stores):
    alone, *others = (
        re.sub(r" in /\S+", "", json.loads((stores[n] / f"errors-{rank}").read_text())["too fast"])
        for n in (1, 2)
        for rank in range(n)
    )
    assert alone.startswith("the loss is not finite in epoch 1, batch 2 of 4")
    assert others == [alone, alone]


EACH_RANK = """
import json, os, sys, torch
from crat import distributed, store
from crat.config import RunConfig
from crat.training.progress import Progress
from crat.training.run import Run
from crat.training.trainer import Trainer
torch.set_num_threads(1)
device = distributed.join(torch.device("cpu"))
trainer = Trainer(Run.of(RunConfig().but(**json.loads(sys.argv[1])), device), device)
trainer.fit(Progress("none"), None)
said = {name: value.tolist() for name, value in trainer.defense.state_dict().items()}
said |= {"weights": store.fingerprint(trainer.state.weights)}
said |= {"model": store.fingerprint(trainer.model.state_dict())}
said |= {"best": trainer.state.best, "gate": vars(trainer.state.gate)}
with open(os.path.join(os.environ["CRAT_RUNS"], f"rank-{distributed.rank()}"), "w") as file:
    file.write(json.dumps(said))
distributed.leave()
os._exit(0)  # a thread of gloo may outlive the interpreter, and then aborts the process
"""


def test_all_ranks_judge_one_network_and_move_one_policy(tmp_path):
    """To the last bit, BatchNorm's statistics included; WAT moves its weights by validation,
    FAWA's gate asks it.
    """
    settings = TINY | {"defense": "wat", "average": "fawa", "average_start": 0}
    together(EACH_RANK, 3, tmp_path / "three", json.dumps(settings))
    first, *others = ((tmp_path / "three" / f"rank-{rank}").read_text() for rank in range(3))
    assert others == [first, first]
    assert len(set(json.loads(first)["weight"])) > 1


def test_a_rank_that_fails_does_not_leave_the_others_waiting(tmp_path):
    failing = """
def loss(*arguments):
    raise MemoryError("of one rank only")
if distributed.join(torch.device("cpu")) and distributed.rank() == 1:
    from crat.defenses import DEFENSES
    DEFENSES["pgd_at"].loss = loss
train.Trainer, errors = Exact, {}
"""
    driver = DRIVER.replace("train.Trainer, errors = Exact, {}", failing)
    with pytest.raises(AssertionError):  # the exit status of either; had one waited, a timeout
        together(driver, 2, tmp_path / "two", json.dumps({"pgd_at": TINY}))


def test_a_plain_run_of_two_is_kept_as_that_of_one(tmp_path, monkeypatch):
    """As a user has it, in bfloat16: one name and all files; the card says how many there were."""
    settings, counts = TINY | {"dtype": "bfloat16"}, {}
    driver = DRIVER.replace(
        "train.Trainer, errors = Exact, {}", "data.Batches.__iter__, errors = plain, {}"
    )
    for n in (1, 2):
        together(driver, n, tmp_path / str(n), json.dumps({"plain": settings}))
        monkeypatch.setenv("CRAT_RUNS", str(tmp_path / str(n)))
        run = Run.of(RunConfig().but(**settings), "cpu")
        assert run.trained_here
        assert run.card().get("processes", 1) == n
        assert all(value.isfinite().all() for value in run.model("best").state_dict().values())
        counts[n] = run.history().n
    assert counts[1].equals(counts[2])


def test_alone_nothing_is_shared():
    assert (distributed.rank(), distributed.world()) == (0, 1)
    x = [torch.ones(2), torch.zeros(3)]
    assert distributed.sum_over_ranks(x) == x
    assert distributed.whole(x[0]) is x[0]
    assert distributed.places(torch.zeros(3)).tolist() == [0, 1, 2]
    assert distributed.decided_by_first(True, torch.device("cpu"))


def test_shares_draw_what_the_whole_batch_draws():
    x = torch.zeros(5, 1, 2, 2)
    for draw in (uniform, normal):
        whole = draw(tuple(x.shape), x, torch.Generator().manual_seed(3))
        for rank in range(2):
            own = torch.arange(rank, 5, 2)
            part = draw(
                (len(own), 1, 2, 2), x[own], Share(torch.Generator().manual_seed(3), own, 5)
            )
            assert torch.equal(part, whole[own])
    per_image = source(torch.Generator().manual_seed(3), x).uniform(4)
    own = torch.tensor([1, 3])
    assert torch.equal(
        source(Share(torch.Generator().manual_seed(3), own, 5), x[own]).uniform(4), per_image[own]
    )


def test_every_batch_is_shared_out_whole(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    for size in (1, 2, 3, 7):
        places, weights = [], []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            part = distributed.share(size, torch.device("cpu"))
            places += part.own.tolist() if part.weight else []
            weights.append(part.weight)
        assert sorted(places) == list(range(size))
        assert sum(weights) / 3 == pytest.approx(1)
