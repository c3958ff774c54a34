"""Can a test fail? Faults in the package, one at a time, against the tests of the faulty line.

    make mutants                                             # 400 faults: hours of one core
    make mutants ARGS="--modules crat/analysis/metrics.py 'crat/defenses/*.py' --sample 50 --seed 1"
    make mutants ARGS="--again build/mutants/faults.jsonl"   # those that survived there, once more

The faults are cosmic-ray's (an operator, a comparison, a number, a condition) and names swapped for
their opposite (min for max, sum for mean). A place in the code is drawn at random, then one of its
faults. Messages of errors, annotations and docstrings are left alone: no number stands on them.
Nothing is changed in the checkout: each fault is written into a copy, and a forked process, which
has torch imported already, runs there what a first run with coverage has shown to pass the line, up
to the first failure. A survivor is a place where the tests would not see a wrong number, or a fault
that changes nothing; people tell which.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import coverage
import parso
import pytest
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
GROUPS = {
    "attacks": ["crat/attacks/*.py"],
    "losses": ["crat/defenses/*.py"],
    "training": ["crat/training/*.py", "crat/outcomes/*.py", "crat/data/*.py"],
    "statistics": ["crat/analysis/*.py", "crat/papers/*.py"],
    "store": ["crat/store/*.py"],
}
# the other test files start processes, notebooks or browsers, draw, or read the package's text
TESTS = """
    apgd apgd_textbook attack_settings attack_strength attacks augment autoattack averaging
    baselines calibration claims comparisons config corruptions data data_errors defenses evaluate
    every_method fab fair_methods fair_policies hyperplane imagenet_audit judge long_tail mce
    method_settings methods metrics minimal models noise parity search spat_and_labels square
    statements statistics_by_hand store superclasses toy train training_loop universal universal_at
    universal_attack variation
"""
UNSEEN = ("survived", "untested")
QUIET = ["-x", "-q", "-p", "no:nbval", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
# of cosmic-ray's operators: what a typing error would be; not what mostly ends in a TypeError (<<
# or `is` for a number)
LIKELY = re.compile(
    "Number|AddNot|Replace(True|False|And|Or|Break|Continue)With|ZeroIteration|"
    "UnaryOperator_(Delete|.*_USub|USub_UAdd)|ComparisonOperator_(?!.*_Is)|ComparisonOperator_Is|"
    "BinaryOperator_(Add|Sub|Mul|Div)_(Add|Sub|Mul|Div)$|"
    "BinaryOperator_(FloorDiv|Mod|Pow)_(Div|Mul)$|BinaryOperator_Bit(Or|And|Xor)_Bit(Or|And)$"
)


class Swap(Operator):
    """A function's name for its opposite."""

    PAIRS = """
        min max, sum mean, argmin argmax, nanmin nanmax, nansum nanmean, amin amax, minimum maximum,
        clamp_min clamp_max, all any, floor ceil, zeros ones, zeros_like ones_like, std var,
        nanstd nanvar, sin cos, log exp, softmax log_softmax, median mean, sub_ add_, isf ppf
    """
    FORTH: ClassVar = dict(pair.split() for pair in PAIRS.split(","))
    OTHER: ClassVar = FORTH | {b: a for a, b in FORTH.items()}

    def mutation_positions(self, node: Any) -> Iterator[tuple]:
        """Each such name."""
        if node.type == "name" and node.value in self.OTHER:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """The other name."""
        node.value = self.OTHER[node.value]
        return node

    @classmethod
    def examples(cls) -> tuple:
        """None: cosmic-ray's own tests ask for them."""
        return ()


KNOWN = OperatorProvider()
OPERATORS: dict[str, Operator] = {name: KNOWN[name]() for name in KNOWN if LIKELY.search(name)}
OPERATORS["Swap"] = Swap()


@dataclass(frozen=True)
class Fault:
    """One change: module, line, column, and cosmic-ray's operator with its occurrence."""

    module: str
    line: int
    column: int
    operator: str
    occurrence: int

    def code(self) -> str:
        """The module's text with the fault in it."""
        return mutate_code(
            (ROOT / self.module).read_text(encoding="utf-8"),
            OPERATORS[self.operator],
            self.occurrence,
        )

    def changed(self) -> str:
        """The line before and after."""
        lines = (
            (ROOT / self.module).read_text(encoding="utf-8").splitlines(),
            self.code().splitlines(),
        )
        before, after = next((a, b) for a, b in zip(*lines, strict=False) if a != b)
        return f"{self.module}:{self.line}\n  - {before.strip()}\n  + {after.strip()}"


def faults_by_place(module: str) -> dict[tuple[int, int], list[Fault]]:
    """All faults of a module, by line and column."""
    tree, places = parso.parse((ROOT / module).read_text(encoding="utf-8")), defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for node in ast_nodes(tree):
        for name, operator in OPERATORS.items():
            for start, _ in operator.mutation_positions(node):
                places[start].append(Fault(module, *start, name, seen[name]))
                seen[name] += 1
    return places


class Meaning(ast.NodeTransformer):
    """What a module computes: no annotations, no docstrings, no errors' messages."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant("")
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)


def meaning(text: str) -> str | None:
    """What a text computes, to be compared; None where it is no Python."""
    try:
        return ast.dump(Meaning().visit(ast.parse(text)))
    except SyntaxError:
        return None


def drawn(modules: list[str], sample: int, rng: random.Random) -> list[Fault]:
    """So many faults, at different places, each place as likely as any other."""
    places = [faults for module in modules for faults in faults_by_place(module).values()]
    rng.shuffle(places)
    chosen: list[Fault] = []
    for faults in places:
        if len(chosen) == sample:
            break
        fault = rng.choice(faults)
        plain = meaning((ROOT / fault.module).read_text(encoding="utf-8"))
        if meaning(fault.code()) not in (None, plain):
            chosen.append(fault)
    return chosen


class Recorder:
    """A pytest plugin: the lines of each test, those of a file's fixtures, the tests' seconds."""

    def __init__(self, cov: coverage.Coverage):
        self.cov, self.seconds = cov, defaultdict(float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.cov.switch_context(file_of(item.nodeid))  # a fixture may serve the whole file

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.cov.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration


def forked(tree: Path, work: Any) -> int:
    """A child process, leader of a group of its own, that ends with the result of `work`."""
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    os.chdir(tree)
    log = os.open(f"{tree}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os.environ["PYTHONPATH"] = str(tree)
    status = 70
    try:
        status = int(work())
    finally:
        os._exit(status)


def record(tests: Path, kept: Path) -> int:
    """Runs a test file with coverage and keeps what each test ran."""
    cov = coverage.Coverage(data_file=None, source=["crat"])
    recorder = Recorder(cov)
    cov.start()
    status = pytest.main([*QUIET[1:], str(tests)], plugins=[recorder])
    cov.stop()
    if status == 0:
        found = cov.get_data()
        lines = {
            str(Path(f).relative_to(Path.cwd())): found.contexts_by_lineno(f)
            for f in found.measured_files()
        }
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"seconds": recorder.seconds, "lines": lines}))
    return status


class Tests:
    """The tests that run a line, by a first run with coverage, kept for the next time."""

    def __init__(self, slow: float) -> None:
        self.slow = slow
        self.lines: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.at_import: set[tuple[str, int]] = set()
        self.users: dict[str, set[str]] = defaultdict(
            set
        )  # the test files that run anything of a module or its folder
        self.imported: dict[str, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self.of_file: dict[str, float] = {}

    def add(self, record: dict[str, Any]) -> None:
        """One test file's record."""
        file = next(iter(record["seconds"])).split("::")[0]
        self.seconds |= record["seconds"]
        self.of_file[file] = sum(record["seconds"].values())
        for module, lines in record["lines"].items():
            self.imported[module].add(file)
            for line, contexts in lines.items():
                self.lines[module, int(line)] |= set(contexts) - {""}
                if "" in contexts:
                    self.at_import.add((module, int(line)))
                if any(contexts):
                    self.users[module].add(file)
                    self.users[str(Path(module).parent)].add(file)

    def of(self, fault: Fault) -> list[str]:
        """The tests that may see the fault, quick files first.

        They are the tests of its line; of a line that runs at import, all of the module's room.
        """
        module, folder = fault.module, str(Path(fault.module).parent)
        # a statement has the number of its first line
        above = ((module, line) for line in range(fault.line, 0, -1))
        place = next((place for place in above if place in self.lines), None)
        room = set(self.users[module])
        if folder != "crat" or not room:
            room |= self.users[folder]
        room = room or self.imported[module]
        chosen = room if place in self.at_import or place is None else self.lines[place]
        quick = [test for test, seconds in self.seconds.items() if seconds <= self.slow]
        return sorted(
            (test for test in quick if {test, file_of(test)} & chosen),
            key=lambda test: (self.of_file[file_of(test)], file_of(test), self.seconds[test]),
        )


def file_of(test: str) -> str:
    """The file of a test's node id."""
    return test.split("::")[0]


def copy_of_the_checkout(folder: Path) -> Path:
    """All that the tests read, where a fault harms nobody."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", ".*_cache")
    return Path(shutil.copytree(ROOT, folder, ignore=ignored))


def observed(
    trees: list[Path], work: dict[Any, Any], limit: dict[Any, float]
) -> Iterator[tuple[Any, str]]:
    """Does each work in a free tree, in a process, and yields its exit status or a word as it ends.

    work: by its name, a function of the tree; it runs in the child. limit: seconds.
    """
    waiting = list(work)
    free = list(trees)
    running: dict[int, tuple[Any, Path, float]] = {}
    while waiting or running:
        while waiting and free:
            name, tree = waiting.pop(0), free.pop()
            running[forked(tree, lambda name=name, tree=tree: work[name](tree))] = (
                name,
                tree,
                time.monotonic(),
            )
        time.sleep(0.02)
        for child, (name, tree, began) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            late = time.monotonic() - began > limit[name]
            if not done and not late:
                continue
            with_children(child)
            if not done:
                os.waitpid(child, 0)
            free.append(tree)
            del running[child]
            yield name, "late" if late and not done else str(os.waitstatus_to_exitcode(status))


def with_children(leader: int) -> None:
    """Ends a group of processes."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def tests_by_line(names: list[str], slow: float, trees: list[Path]) -> Tests:
    """Runs what has not been recorded for this state of the package."""
    package = "".join(p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("crat/**/*.py")))
    files = [path for name in names for path in ROOT.glob(f"tests/**/test_{name}.py")]
    kept = {}
    for path in files:
        text = package + path.read_text(encoding="utf-8")
        state = hashlib.sha256(text.encode()).hexdigest()[:12]
        kept[path] = BUILD / "lines" / f"{path.stem}-{state}.json"
    missing = {
        p: lambda tree, p=p: record(tree / p.relative_to(ROOT), kept[p])
        for p in files
        if not kept[p].exists()
    }
    for path, status in observed(trees, missing, dict.fromkeys(missing, 3600.0)):
        word = "recorded" if status == "0" else "fails without a fault, and is left out"
        print(f"{path.name}: {word}", flush=True)
    tests = Tests(slow)
    for path in kept.values():
        if path.exists():
            tests.add(json.loads(path.read_text()))
    return tests


def verdicts(faults: list[Fault], tests: Tests, trees: list[Path]) -> Iterator[tuple[Fault, str]]:
    """Each fault as "killed", "late" (an endless loop, killed), "survived" or "untested"."""

    def work(fault: Fault) -> Any:
        def run(tree: Path) -> int:
            module = tree / fault.module
            module.write_text(fault.code(), encoding="utf-8")
            try:
                return pytest.main([*QUIET, *chosen[fault]])
            finally:
                shutil.copyfile(ROOT / fault.module, module)

        return run

    chosen = {fault: tests.of(fault) for fault in faults}
    limits = {fault: 60 + 10 * sum(tests.seconds[t] for t in chosen[fault]) for fault in faults}
    yield from ((fault, "untested") for fault in faults if not chosen[fault])
    for fault, status in observed(trees, {f: work(f) for f in faults if chosen[f]}, limits):
        yield fault, {"0": "survived", "late": "late"}.get(status, "killed")


def read(path: Path) -> list[tuple[Fault, str]]:
    """What a run has found so far."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(Fault(**row["fault"]), row["word"]) for row in rows]


def group_of(module: str) -> str:
    """The group's name."""
    return next(
        (g for g, patterns in GROUPS.items() if any(Path(module).match(p) for p in patterns)),
        "other",
    )


def score(found: list[tuple[Fault, str]]) -> str:
    """A line per group: faults, those that survived, and the share that was seen."""
    lines, by_group = (
        ["| group | faults | survived | seen |", "|---|---|---|---|"],
        defaultdict(list),
    )
    for fault, word in found:
        by_group[group_of(fault.module)].append(word in UNSEEN)
    for group, own in by_group.items():
        lines.append(f"| {group} | {len(own)} | {sum(own)} | {1 - sum(own) / len(own):.0%} |")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--modules", nargs="+", default=[p for group in GROUPS.values() for p in group])
    add("--tests", nargs="+", default=TESTS.split(), help="test files, without test_ and .py")
    add("--slow", type=float, default=20, help="leave out tests that take longer (seconds)")
    add("--sample", type=int, default=400, help="how many faults")
    add("--seed", type=int, default=0, help="of the draw")
    add("--jobs", type=int, default=1, help="processes at a time")
    add("--again", type=Path, help="a file of faults: run its survivors instead of new ones")
    add("--out", type=Path, default=BUILD / "faults.jsonl")
    return parser.parse_args()


def prepared(folder: str) -> None:
    """Imports here what every fork would import, and settles what the tests run under."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # bytecode of the same second and length would be taken for that of a fault
    sys.dont_write_bytecode = True
    for module in ("hypothesis.strategies", "pandas", "scipy.optimize", "scipy.stats", "torch"):
        importlib.import_module(module)
    with redirect_stdout(io.StringIO()):
        pytest.main([*QUIET, "-c", os.devnull, "--rootdir", folder, folder])


def main() -> None:
    """Draws, runs, and prints the survivors and the score."""
    args = options()
    paths = {path for pattern in args.modules for path in ROOT.glob(pattern)}
    modules = sorted(str(path.relative_to(ROOT)) for path in paths)
    if args.again:
        faults = [fault for fault, word in read(args.again) if word in UNSEEN]
        found = []
    else:
        faults = drawn(modules, args.sample, random.Random(args.seed))
        found = read(args.out)  # a killed run goes on
    faults = [fault for fault in faults if fault not in dict(found)]
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crat-mutants-") as folder:
        prepared(folder)
        trees = [copy_of_the_checkout(Path(folder, str(job))) for job in range(args.jobs)]
        tests = tests_by_line(args.tests, args.slow, trees)
        with args.out.open("w" if args.again else "a") as out:
            for fault, word in verdicts(faults, tests, trees):
                found.append((fault, word))
                row = {"fault": asdict(fault), "word": word, "changed": fault.changed()}
                out.write(json.dumps(row) + "\n")
                out.flush()
                if word in UNSEEN:
                    print(f"{word}: {fault.changed()}", flush=True)
    print(score(found))


if __name__ == "__main__":
    main()
