"""Faults at a place, not at a time: what is to be disturbed waits there until the harm is done,
on any machine.
"""

import os
import time

PATIENCE = 600  # seconds; only a test that fails waits so long

# found by every Python that has the folder of this file on its path: a worker waits in mid-epoch
# for its gate to open
GATED = """
import sys
if "crat.batch.worker" in sys.orig_argv:
    import os, time
    from pathlib import Path
    from crat.training.step import Step
    from crat.training.trainer import Trainer

    update, train_epoch = Step.__call__, Trainer.train_epoch
    names, steps = {}, []

    def named(trainer, *given):
        names[trainer.step] = trainer.run.name
        return train_epoch(trainer, *given)

    def gated(step, *given):
        done = step.state.epochs_done
        steps.append(done)
        gate = Path(__file__).with_name(f"{names[step]}-{done}")
        if steps.count(done) == 2 and gate.exists():
            gate.with_suffix(".half").write_text(str(os.getpid()))
            gate.with_suffix(".half").rename(gate.with_suffix(".reached"))
            while gate.exists():
                time.sleep(0.01)
        return update(step, *given)

    Trainer.train_epoch = named
    Step.__call__ = gated
"""


def wait_until(asked, what):
    """Asks until the answer is true, and returns it; AssertionError after PATIENCE, a machine
    too slow for any test.
    """
    deadline = time.monotonic() + PATIENCE
    while not (answer := asked()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s: {what}"
        time.sleep(0.01)
    return answer


class Gates:
    """Closed in a folder: a worker that has done so many epochs of a run waits at the second
    step of the next.
    """

    def __init__(self, folder, monkeypatch):
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(GATED)
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        self.folder = folder

    def close(self, run, done):
        (self.folder / f"{run.name}-{done}").touch()

    def open(self, run, done):
        (self.folder / f"{run.name}-{done}").unlink()

    def waiting_at(self, run, done):
        """The number of the process that stands before the gate, once one does."""
        reached = self.folder / f"{run.name}-{done}.reached"
        wait_until(reached.exists, f"nobody has done {done} epochs of {run.name}")
        return int(reached.read_text())
