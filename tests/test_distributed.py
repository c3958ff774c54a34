"""Two processes, one training: the numbers of a single one."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from crat import distributed
from crat.attacks.noise import Share, normal, source, uniform
from crat.config import RunConfig
from crat.run import Run
from crat.train import train

pytestmark = pytest.mark.usefixtures("own_store")

DRIVER = """
import json, os, sys, torch
from crat import distributed
from crat.config import RunConfig
from crat.train import train
torch.set_num_threads(1)
run = train(RunConfig().but(**json.loads(sys.argv[1])), progress="none", device="cpu")
distributed.leave()
os._exit(0)  # a thread of gloo may outlive the interpreter, and then aborts the process
"""


def together(settings, processes, store, driver=DRIVER, *arguments):
    """Trains in so many processes that find each other as torchrun lets them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRAT_RUNS": store}
    environments = [
        os.environ | {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for rank in range(processes)
    ]
    command = [sys.executable, "-c", driver, json.dumps(settings), *arguments]
    children = [subprocess.Popen(command, env=e, stderr=subprocess.PIPE, text=True) for e in environments]
    try:
        for child in children:
            _, told = child.communicate(timeout=240)
            assert child.returncode == 0, told
    finally:
        for child in children:
            child.kill()


# a batch of 37 leaves one image for the last step of an epoch, so one of two ranks has none there
SETTINGS = dict(  # a small rate: the sign of a gradient turns one rounding into a step
    model="lenet5",
    train_per_class=26,
    valid_per_class=5,
    epochs=2,
    steps=2,
    batch_size=37,
    dtype="float32",
    lr=0.01,
)  # lenet5: without BatchNorm, whose batch statistics are a rank's own


@pytest.mark.parametrize(
    ("extra", "within"),
    [({}, 1e-6), ({"defense": "cfa", "average": "fawa", "options": {"base": "trades"}, "awp": 0.01}, 5e-4)],
    ids=("pgd_at", "everything"),
)
def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch, extra, within):
    settings = SETTINGS | extra
    alone = train(RunConfig().but(**settings), progress="none", device="cpu")
    expected, history = alone.model("last").state_dict(), alone.history()
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "two"))
    together(settings, 2, tmp_path / "two")
    run = Run.of(RunConfig().but(**settings))
    assert run.finished
    for name, value in run.model("last").state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=within, msg=name)
    both = run.history()
    assert both.n.equals(history.n)  # no image is counted twice, and none left out
    torch.testing.assert_close(torch.tensor(both.loss), torch.tensor(history.loss), rtol=1e-3, atol=1e-3)


EACH_RANK = """
import json, os, sys, torch
from crat import distributed, store
from crat.config import RunConfig
from crat.progress import Progress
from crat.run import Run
from crat.train import Trainer
torch.set_num_threads(1)
device = distributed.join(torch.device("cpu"))
trainer = Trainer(Run.of(RunConfig().but(**json.loads(sys.argv[1])), device), device)
trainer.fit(Progress("none"), None)
said = {name: value.tolist() for name, value in trainer.defense.state_dict().items()}
said |= {"weights": store.fingerprint(trainer.current), "best": trainer.best, "gate": vars(trainer.gate)}
with open(f"{sys.argv[2]}-{distributed.rank()}", "w") as file:
    file.write(json.dumps(said))
distributed.leave()
os._exit(0)  # a thread of gloo may outlive the interpreter, and then aborts the process
"""


def test_all_ranks_judge_one_network_and_move_one_policy(tmp_path):
    """With BatchNorm each rank has seen other batches; gate, best epoch and class weights must be common all the same.

    (WAT moves its weights by validation.)
    """
    settings = SETTINGS | {"model": "small_cnn", "width": 4, "defense": "wat", "average": "fawa"}
    together(settings, 2, tmp_path / "two", EACH_RANK, str(tmp_path / "rank"))
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in range(2))
    assert first == second
    assert len(set(json.loads(first)["weight"])) > 1


def test_alone_nothing_is_shared():
    assert (distributed.rank(), distributed.world()) == (0, 1)
    x = [torch.ones(2), torch.zeros(3)]
    assert distributed.sum_over_ranks(x) == x
    assert distributed.decided_by_first(True, torch.device("cpu"))


def test_shares_draw_what_the_whole_batch_draws():
    x = torch.zeros(5, 1, 2, 2)
    for draw in (uniform, normal):
        whole = draw(tuple(x.shape), x, torch.Generator().manual_seed(3))
        for rank in range(2):
            own = torch.arange(rank, 5, 2)
            part = draw((len(own), 1, 2, 2), x[own], Share(torch.Generator().manual_seed(3), own, 5))
            assert torch.equal(part, whole[own])
    per_image = source(torch.Generator().manual_seed(3), x).uniform(4)
    own = torch.tensor([1, 3])
    assert torch.equal(source(Share(torch.Generator().manual_seed(3), own, 5), x[own]).uniform(4), per_image[own])


def test_every_batch_is_shared_out_whole(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    for size in (1, 2, 3, 7):
        places, weights = [], []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            own, weight = distributed.share(size, torch.device("cpu"))
            places += own.tolist() if weight else []
            weights.append(weight)
        assert sorted(places) == list(range(size))
        assert sum(weights) / 3 == pytest.approx(1)
