"""The shape of the package: imports only go down, files and functions stay small, nothing acts at a distance."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {p.relative_to(ROOT): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(ROOT.glob("crat/**/*.py"))}
FILES = [*MODULES, *sorted(p.relative_to(ROOT) for p in ROOT.glob("tests/**/*.py"))]

# A module may import from its own floor and from those below it (a package stands for all its modules).
FLOORS = (
    ("crat", "crat.config", "crat.names", "crat.text"),
    (
        *("crat.data", "crat.sources", "crat.mirrors", "crat.originals", "crat.augment"),
        "crat.imagenet_labels",
        *("crat.bodies", "crat.models", "crat.curves", "crat.metrics", "crat.store", "crat.device"),
        "crat.manifest",
        *("crat.progress", "crat.distributed", "crat.corruptions", "crat.mce", "crat.calibration", "crat.longtail"),
        *("crat.lease", "crat.whole_batch"),
        *("crat.comparisons", "crat.superclasses", "crat.toy", "crat.variation"),
    ),
    ("crat.attacks", "crat.averaging", "crat.awp"),
    ("crat.defenses",),
    (
        *("crat.checkpoint", "crat.evaluate", "crat.run", "crat.schedules", "crat.train", "crat.verdicts"),
        *("crat.identity", "crat.kept", "crat.ours"),
    ),
    (
        *("crat.claims", "crat.leaderboard", "crat.papers", "crat.plans", "crat.statements"),
        *("crat.plots", "crat.plots_cfa", "crat.plots_labels", "crat.plots_methods", "crat.plots_spat"),
        "crat.plots_tail",
    ),
    (
        *("crat.__main__", "crat.audit", "crat.bench", "crat.bench_attacks", "crat.bench_train", "crat.cli"),
        *("crat.course", "crat.probes"),
        *("crat.flags", "crat.foreign", "crat.methods", "crat.published", "crat.recipes"),
        *("crat.batch", "crat.peers", "crat.precision"),
    ),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

each_module = pytest.mark.parametrize("path", MODULES, ids=str)


def module_name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(name):
    """The floor of a module, by its first two parts; None where it has none."""
    return FLOOR.get(".".join(name.split(".")[:2]))


def imports(path, tree):
    """The modules of crat (and others) that a file imports anywhere in it, absolute and with their line."""
    package = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:  # `from crat import data` names a module, `from crat.data import load` a function
                name = f"{base}.{alias.name}"
                yield (name if name in FLOOR else base), node.lineno


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node):
    return node.end_lineno - node.lineno + 1


@each_module
def test_imports_only_go_down(path):
    own = floor_of(module_name(path))
    assert own is not None, f"{path} has no floor: add it to FLOORS in {Path(__file__).name}"
    for name, line in imports(path, MODULES[path]):
        if name.split(".")[0] == "crat":
            assert floor_of(name) is not None, f"{path}:{line} imports {name}, which has no floor"
            assert floor_of(name) <= own, f"{path}:{line} imports {name}, which is a floor above"


def test_an_upward_import_is_seen():
    def names(text, path="crat/attacks/gradient.py"):
        return [name for name, _ in imports(Path(path), ast.parse(text))]

    assert names("def f():\n    from crat.train import train") == ["crat.train"]
    assert names("from ..train import train") == ["crat.train"]
    assert names("from .. import train, __version__") == ["crat.train", "crat"]
    assert names("from crat import train") == ["crat.train"]
    assert names("import crat.train as t") == ["crat.train"]
    assert names("from .threat import Threat") == ["crat.attacks.threat"]
    assert floor_of("crat.attacks.threat") < floor_of("crat.train")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_fit_on_a_screen(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 500, f"{path} has {text.count(chr(10))} lines"
    long = [f"{path}:{f.lineno} {f.name}: {length(f)} lines" for f in functions(ast.parse(text)) if length(f) > 80]
    assert not long, long


def test_most_functions_are_short():
    lengths = [length(f) for tree in MODULES.values() for f in functions(tree)]
    assert statistics.median(lengths) < 15


@each_module
def test_heavy_imports_stay_where_they_are_needed(path):
    """torchvision takes seconds and does not import beside a CPU-only torch; plots draws tables and knows no torch."""
    tree = MODULES[path]
    in_functions = {line for f in functions(tree) for _, line in imports(path, f)}
    for name, line in imports(path, tree):
        package = name.split(".")[0]
        assert package != "torchvision" or line in in_functions, f"{path}:{line} imports torchvision at once"
        assert package != "torch" or path.name != "plots.py", f"{path}:{line}: plots imports torch"


# What draws from torch's global generator unless it is given one: functions of torch, in-place ones of a tensor
DRAWS = {"bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm"}
DRAWS_IN_PLACE = {"bernoulli_", "exponential_", "normal_", "random_", "uniform_"}
SEEDS = {"manual_seed", "manual_seed_all", "seed"}


def global_draws(tree):
    """The calls that draw from torch's global generator, or seed it in a file that never forks it (`fork_rng`)."""
    forks = any(isinstance(node, ast.Attribute) and node.attr == "fork_rng" for node in ast.walk(tree))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            owner, name = ast.unparse(call.func.value), call.func.attr
            seeds = name in SEEDS and owner in {"torch", "torch.random", "torch.cuda"} and not forks
            draws = (name in DRAWS and owner == "torch") or (name in DRAWS_IN_PLACE and owner != "nn.init")
            if seeds or (draws and "generator" not in {keyword.arg for keyword in call.keywords}):
                yield f"line {call.lineno}: {ast.unparse(call)}"


@each_module
def test_the_global_generator_is_left_alone(path):
    assert list(global_draws(MODULES[path])) == []


def test_a_global_draw_is_seen():
    def seen(text):
        return len(list(global_draws(ast.parse(text))))

    assert seen("torch.manual_seed(0)") == seen("torch.rand(3)") == seen("x.uniform_(-1, 1)") == 1
    assert seen("torch.rand(3, generator=g)") == seen("generator.manual_seed(0)") == 0
    assert seen("with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)") == 0


def test_nothing_asks_for_a_gpu_at_import():
    """Every module is imported where a question about CUDA is an error."""
    forbid = "import torch\ndef no(*args, **kwargs): raise RuntimeError('CUDA was asked for at import')\n" + "".join(
        f"torch.cuda.{name} = no\n" for name in ("_lazy_init", "is_available", "device_count", "current_device")
    )
    everything = "".join(f"import {module_name(path)}\n" for path in MODULES if path.stem != "__main__")
    run = subprocess.run([sys.executable, "-c", forbid + everything], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
