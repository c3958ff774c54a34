"""The graph of runs and notebooks, what chooses its parts, and what is refused in one line."""

import os
import re
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from crat import cli, store
from crat.batch import executors, notebook, reproduce, tasks
from crat.batch import plan as batch
from crat.batch.executors import Local, Outcome, perform
from crat.batch.notebook import NotebookError
from crat.batch.parameters import choose_parameters, declared
from crat.config import ConfigError, RunConfig, Selection, profile
from crat.store import Store
from crat.training.run import Run, fine_tuned

pytestmark = pytest.mark.usefixtures("own_store")

PARAMETERS = (
    'profile: str = "quick"\nseed: int = 0\neps: float = 0.1\ndata: str = ""\nseeds: str = ""'
)
NAMES = ("00_start_here", "03_hou2023_spat", "04_wei2023_cfa")
LIVE, FIRST, SECOND, THIRD = (profile("quick").but(seed=s) for s in range(4))


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Three of them: all train the same network live, two share a run."""
    monkeypatch.chdir(tmp_path)
    runs = {
        "00": {"live": LIVE},
        "03": {"live": LIVE, "a": FIRST, "b": SECOND},
        "04": {"live": LIVE, "x": SECOND},
    }
    runs["04"]["y"] = THIRD
    monkeypatch.setattr(batch, "plan_of", lambda number, *_: (runs[number], ()))
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cell = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    for name in NAMES:
        nbformat.write(new_notebook(cells=[cell]), folder / f"{name}.ipynb")
    return folder


def jobs_of(notebooks, profile="quick"):
    return [
        batch.job(path, Path("figures"), profile, {}, "")
        for path in reproduce.choose(notebooks, [])
    ]


def test_a_run_that_two_notebooks_ask_for_is_one_task(notebooks):
    jobs = jobs_of(notebooks)
    runs = batch.entries(jobs, True, Store.usual())
    assert [(entry.notebooks, entry.live) for entry in runs] == [
        (["00", "03", "04"], True),
        (["03"], False),
        (["03", "04"], False),
        (["04"], False),
    ]
    live, a, b, y = (entry.run.name for entry in runs)
    start, spat, cfa = batch.linked(jobs, runs)
    assert (start.needs, start.after) == (set(), set())
    # the first shows it, the others find it
    assert (spat.needs, spat.after) == ({a, b}, {"00_start_here"})
    assert (cfa.needs, cfa.after) == ({b, y}, {"00_start_here"})
    assert live in {
        entry.run.name for entry in batch.entries(jobs, False, Store.usual()) if not entry.live
    }
    assert [entry.state for entry in runs] == [
        "to be trained in notebook 00",
        *["to be trained"] * 3,
    ]


def test_shards_deal_all_runs_alike(notebooks):
    runs = batch.entries(jobs_of(notebooks), True, Store.usual())
    parts = [batch.share(runs, i, 2) for i in (1, 2)]
    assert [len(part) for part in parts] == [2, 1]
    assert {entry.run.name for part in parts for entry in part} == {
        entry.run.name for entry in runs[1:]
    }
    assert batch.share(runs, 5, 5) == []


@pytest.fixture
def asking(notebooks, monkeypatch):
    """A function of the runs that each notebook asks for -> the jobs."""

    def ask(runs, weights=()):
        monkeypatch.setattr(batch, "plan_of", lambda number, *_: (runs.get(number, {}), weights))
        return jobs_of(notebooks)

    return ask


def test_a_run_that_starts_from_another_waits_for_it(asking):
    """Also where another notebook asks for that one, and where a chain of them is asked for."""
    tuned = fine_tuned(SECOND, FIRST)
    jobs = asking({"03": {"a": tuned}, "04": {"b": fine_tuned(THIRD, tuned), "base": FIRST}})
    runs = batch.entries(jobs, True, Store.usual())
    a, b, base = (Run.of(config).name for config in (tuned, jobs[2].runs["b"], FIRST))
    assert [entry.run.name for entry in runs] == [base, a, b]
    assert [entry.notebooks for entry in runs] == [["03", "04"], ["03", "04"], ["04"]]
    assert [set(entry.task(Store.usual()).needs) for entry in runs] == [set(), {base}, {a}]
    _, spat, cfa = batch.linked(jobs, runs)
    assert (spat.needs, cfa.needs) == ({a, base}, {a, b, base})


def test_a_live_run_that_another_starts_from_is_no_longer_live(asking):
    tuned = fine_tuned(SECOND, LIVE)
    runs = batch.entries(asking({"00": {"live": LIVE, "tuned": tuned}}), True, Store.usual())
    assert [entry.live for entry in runs] == [False, False]
    jobs = asking({"00": {"live": LIVE}, "03": {"live": tuned}})  # unless that one is live, too
    runs = batch.entries(jobs, True, Store.usual())
    assert [(entry.live, entry.notebooks) for entry in runs] == [
        (True, ["00", "03"]),
        (True, ["03"]),
    ]
    assert [job.after for job in batch.linked(jobs, runs)][1] == {"00_start_here"}


def test_a_published_start_is_trained_where_a_run_needs_its_weights(asking):
    card = min(store.results_home().glob("fashion_mnist_mini/*/card.json"))
    start = RunConfig.from_dict(store.read_json(card)["config"])
    tuned = fine_tuned(start.but(seed=70), start)
    states = {}
    for runs in ({"start": start}, {"start": start, "tuned": tuned}):
        found = batch.entries(asking({"03": runs}), True, Store.usual())
        states[len(runs)] = [entry.state for entry in found]
    assert states == {1: [""], 2: ["to be trained", "to be trained"]}


def test_runs_that_start_from_one_another_are_in_one_share(asking):
    tuned = fine_tuned(THIRD, FIRST)
    plan = {"a": FIRST, "b": SECOND, "c": tuned, "d": THIRD, "e": fine_tuned(SECOND, tuned)}
    runs = batch.entries(asking({"03": plan}), True, Store.usual())
    one, two, three = (batch.share(runs, i, 3) for i in (1, 2, 3))
    name = {Run.of(config).name: key for key, config in plan.items()}
    shares = [[name[entry.run.name] for entry in part] for part in (one, two, three)]
    assert shares == [["a", "c", "e"], ["b"], ["d"]]


class Recorded:
    """A place that does nothing but note what it is given, with room for all of it at a time."""

    def __init__(self, error=""):
        self.began = []
        self.error = error

    def submit(self, task):
        self.began.append(task.name)
        future = Future()
        future.set_result(Outcome(self.error))
        return future

    def close(self):
        pass


def test_the_batch_trains_the_start_first(asking):
    tuned = fine_tuned(SECOND, FIRST)
    runs = batch.entries(asking({"03": {"tuned": tuned, "base": FIRST}}), True, Store.usual())
    first, second = runs
    todo = [entry.task(Store.usual()) for entry in (second, first)]
    place = Recorded()
    assert perform(todo, place, place) == {}
    assert place.began == [first.run.name, second.run.name]
    failing = Recorded("the loss is not finite")
    errors = perform(todo, failing, failing)
    assert failing.began == [first.run.name]
    assert errors[second.run.name] == f"it needs {first.run.name}, which failed"


def test_several_runs_share_a_gpu_only_where_all_are_small(notebooks):
    runs = batch.entries(jobs_of(notebooks), True, Store.usual())
    assert reproduce._all_small(runs)
    large = profile("quick").but(data="stl10")  # the same network on images of 96 x 96
    for config in (profile("gpu"), profile("paper"), large):
        assert not reproduce._all_small([*runs, batch.Entry(Run.of(config))])
    for name in ("quick", "laptop"):
        assert batch.Entry(Run.of(profile(name))).small


def test_a_batch_says_how_many_processes_a_gpu_has(notebooks, monkeypatch, capsys):
    slot = {"CUDA_VISIBLE_DEVICES": "0", "CRAT_GPU_SHARE": "0.45", "OMP_NUM_THREADS": "1"}
    asked = []
    monkeypatch.setattr(executors, "slots", lambda *given: asked.append(given) or [slot] * 2)
    monkeypatch.setattr(reproduce, "slots", executors.slots)
    monkeypatch.setattr(reproduce, "perform", lambda tasks, *_: {"04_wei2023_cfa": "not begun"})
    assert reproduce.run(notebooks=notebooks, figures=Path("figures")) == 1
    told = capsys.readouterr().out
    assert re.search(r"^all of it .* 2 at a time on ", told, re.MULTILINE)
    assert "\n2 processes on each of 1 GPU, each with 45 % of its memory\n" in told
    assert set(asked) == {(None, True)}  # the plan's number is that of the batch


def test_a_task_is_the_same_run_for_the_worker(notebooks):
    """The driver decides what "auto" means, so that all machines make what it asks for."""
    for entry in batch.entries(jobs_of(notebooks), True, Store.usual()):
        task = entry.task(Store.usual())
        config = RunConfig.from_dict(task.config)
        assert config.train.dtype != "auto"
        assert Run.of(config).name == task.name


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["03"], [1]),
        (["spat"], [1]),
        (["hou"], [1]),
        (["hou2023", "CFA"], [1, 2]),
        (["04_wei2023_cfa", "00"], [0, 2]),
        ([], [0, 1, 2]),
    ],
)
def test_notebooks_are_chosen_by_number_author_or_method(notebooks, names, found):
    assert [path.stem for path in reproduce.choose(notebooks, names)] == [NAMES[i] for i in found]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--papers madry",
            "no notebook 'madry'; known: 00_start_here, 03_hou2023_spat, 04_wei2023_cfa",
        ),
        (
            "--set epsilon=1",
            "no chosen notebook has a parameter 'epsilon'; known: data, eps, seed, seeds",
        ),
        ("--parameters none.yml", "--parameters none.yml: No such file or directory"),
        ("--parameters bad.yml", "--parameters bad.yml is no YAML"),
        ("--parameters list.yml", "--parameters list.yml: it holds lines such as seed: 1"),
        ("--parameters typo.yml", "no chosen notebook has a parameter 'sed'"),
        ("--parameters text.yml", "seed: '1' in the file: seed is of type int, such as 0"),
        ("--shard 3/2", "--shard is i/n with i from 1 to n, such as 1/4, not '3/2'"),
        ("--recompute", "--recompute: 00_start_here has no parameter recompute"),
        ("--set recompute=true", "the recompute is chosen by --recompute"),
        ("--workers 0", "--workers is at least 1, not 0"),
        ("--data flowers", "'flowers'"),
        (
            "--data cifar10",
            "--data cifar10: 00_start_here has runs that stay on fashion_mnist_mini",
        ),
        ("--seeds 1 2", "seeds are numbers, 0 among them for what is run once: 0 1 2, not 1 2"),
        ("03 --seeds 0 1", "--seeds: 03_hou2023_spat has runs of the seeds 2"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(notebooks, monkeypatch, capsys, words, line):
    for name, text in {"bad": "a: [", "list": "- 1", "typo": "sed: 1", "text": "seed: '1'"}.items():
        Path(f"{name}.yml").write_text(text)
    run = reproduce.run
    monkeypatch.setattr(
        reproduce, "run", lambda *given, **more: run(*given, **more, notebooks=notebooks)
    )
    assert cli.main(["reproduce", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("crat: ")
    assert line in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_the_parameter_files_are_for_crat_and_papermill_alike():
    root = Path(__file__).parents[2] / "notebooks"
    every = sorted(root.glob("[0-9]*.ipynb"))
    files = sorted((root / "parameters").glob("*.yml"))
    assert [file.stem for file in files] == ["gpu", "laptop", "paper", "quick"]
    for file in files:
        values = yaml.safe_load(file.read_text())
        assert values["profile"] == file.stem
        for path, given in choose_parameters(every, file.stem, [], values).items():
            assert given == values
            assert values.keys() <= declared(path).keys()


def test_the_command_line_goes_before_the_file(notebooks, monkeypatch, capsys):
    Path("own.yml").write_text("profile: laptop\nseed: 5\neps: 1\n")
    seen = {}

    class Enough(Exception):
        pass

    def job(path, figures, profile, given, again):
        seen[profile] = given
        raise Enough

    monkeypatch.setattr(batch, "job", job)
    asked = dict(parameters=Path("own.yml"), notebooks=notebooks, dry_run=True)
    for given in (["seed=7"], []):
        with pytest.raises(Enough):
            reproduce.run(["03"], None if given else "paper", given, **asked)
    assert seen["laptop"] == {"profile": "laptop", "seed": 7, "eps": 1.0}
    assert seen["paper"] == {"profile": "paper", "seed": 5, "eps": 1.0}
    Path("own.yml").write_text("profile: slow")
    with pytest.raises(ConfigError, match="unknown profile 'slow'"):
        reproduce.run(**asked)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(NotebookError, match="parameters are read by PyYAML"):
        reproduce.run(**asked)


def test_a_notebook_on_another_data_set_is_another(notebooks, monkeypatch):
    """A record for one data set or seeds does not count for another; the plan gets both."""
    asked = []

    def plan(number, profile, seed, chosen):
        asked.append((number, profile, seed, chosen))
        return {"a": chosen.on_data(FIRST)}, ("a",)

    monkeypatch.setattr(batch, "plan_of", plan)
    path = notebooks / "00_start_here.ipynb"

    def job(**parameters):
        return batch.job(path, Path("figures"), "quick", parameters, "")

    plain, mnist = job(), job(data="mnist", seeds="0 4", seed=3)
    assert {key for key in plain.made_from if plain.made_from[key] != mnist.made_from[key]} == {
        "runs",
        "parameters",
    }
    assert asked == [
        ("00", "quick", 0, Selection()),
        ("00", "quick", 3, Selection("mnist", (0, 4))),
    ]
    assert (plain.weights, job().made_from) == (("a",), plain.made_from)


def test_flags_reach_the_notebooks_that_declare_them(notebooks, monkeypatch):
    """--data, --seeds and --recompute become parameters; the environment decides nothing."""
    given = []
    monkeypatch.setattr(batch, "plan_of", lambda *asked: ({"a": asked[3].on_data(FIRST)}, ()))
    right = batch.job
    monkeypatch.setattr(batch, "job", lambda *asked: given.append(asked[3]) or right(*asked))
    monkeypatch.setenv("CRAT_SEEDS", "0 9")
    asked = dict(notebooks=notebooks, dry_run=True, selection=Selection("CIFAR-10", (0, 1, 2, 3)))
    assert reproduce.run(["00"], **asked) == 0
    assert given == [{"profile": "quick", "data": "cifar10", "seeds": "0 1 2 3"}]
    recomputes = new_code_cell(
        PARAMETERS + "\nrecompute: bool = False", metadata={"tags": ["parameters"]}
    )
    nbformat.write(new_notebook(cells=[recomputes]), notebooks / "00_start_here.ipynb")
    assert reproduce.run(["00"], **asked, recompute=True) == 0
    assert given[1] == given[0] | {"recompute": True}


def test_what_a_notebook_wrote_is_what_changed(notebooks, monkeypatch):
    """Whatever the clock of the disk says."""
    job = jobs_of(notebooks)[0]
    for name in ("before", "rewritten", "drawn"):
        (job.folder / "deep").mkdir(parents=True, exist_ok=True)
        (job.folder / "deep" / name).touch()
        os.utime(job.folder / "deep" / name, (4e9, 4e9))  # as if of a day to come
    (job.folder / "deep" / "drawn").unlink()
    monkeypatch.setattr(notebook, "start", lambda *_: SimpleNamespace(fault=str))
    assert job.lease.attempt()
    child = job.begin({})
    for name in ("rewritten", "drawn"):
        (job.folder / "deep" / name).touch()
        os.utime(job.folder / "deep" / name, (1e9, 1e9))  # as if of long ago
    assert job.finish(child) == ""
    assert job.record["files"] == ["deep/drawn", "deep/rewritten"]
    job.lease.release()


def test_what_cannot_be_removed_fails_that_notebook_only(notebooks, monkeypatch):
    first, second, third = jobs_of(notebooks)
    (first.folder / "bars.png").mkdir(parents=True)
    store.write_json(first.folder / "success.json", {"files": ["bars.png"]})
    began = []
    monkeypatch.setattr(tasks.Job, "steps", 1)
    right = tasks.Job.begin

    def begin(job, env):
        began.append(job.name)
        if job.name != first.name:
            raise store.StoreError("that far")
        return right(job, env)

    monkeypatch.setattr(tasks.Job, "begin", begin)
    local = Local(1)
    errors = perform([first, second, third], local, local)
    assert "bars.png" in errors.pop(first.name)
    assert errors == dict.fromkeys((second.name, third.name), "that far")
    assert began == list(NAMES)
    assert not list(first.folder.glob(".lease"))


def test_what_starts_tasks_imports_no_torch():
    """A dask worker's own process stays small; what it starts imports what it needs."""
    heavy = "any(m in sys.modules for m in ('torch', 'pandas'))"
    code = f"import sys, crat.batch.cluster, crat.batch.reproduce; sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
