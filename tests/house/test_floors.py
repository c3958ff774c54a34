"""The shape of the package: imports only go down, files and functions stay small, nothing acts at a
distance.
"""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    p.relative_to(ROOT): ast.parse(p.read_text(encoding="utf-8"))
    for p in sorted(ROOT.glob("crat/**/*.py"))
}
FILES = [*MODULES, *sorted(p.relative_to(ROOT) for p in ROOT.glob("tests/**/*.py"))]

# The rooms of crat/, a line a floor; what lies beside the rooms is the ground. A module may import
# from its own room and from the floors below it.
FLOORS = (
    "config device distributed extras graphs names text",
    "keys store",
    "data nets",
    "analysis attacks",
    "corruptions defenses",
    "training",
    "outcomes",
    "papers plots",
    "audit batch",
    "cli",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
LONGEST_CHAIN = 14  # modules that import one another in a row

NAMES = {".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in MODULES}
FACES = {
    module: set(ast.literal_eval(node.value))
    for path, tree in MODULES.items()
    for node in tree.body
    if path.name == "__init__.py"
    and isinstance(node, ast.Assign)
    and ast.unparse(node.targets[0]) == "__all__"
    for module in [".".join(path.parent.parts)]
}

each_module = pytest.mark.parametrize("path", MODULES, ids=str)


def module_name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name):
    """The room of a module, or the module itself where it is on the ground; "" for crat itself."""
    if name == "crat.data.registry":  # a table, which config reads
        return "config"
    if name == "crat.__main__":
        return "cli"
    return ".".join(name.split(".")[1:2])


def imports(path, tree):
    """What a file imports anywhere in it: (module, name or None, line), absolute."""
    package = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                whole = f"{base}.{alias.name}"  # `from crat.analysis import metrics` names a module
                yield (
                    (whole, None, node.lineno)
                    if whole in NAMES
                    else (base, alias.name, node.lineno)
                )


def of_crat(path):
    """The imports of crat's own modules."""
    return [found for found in imports(path, MODULES[path]) if found[0].split(".")[0] == "crat"]


def functions(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def length(node):
    return node.end_lineno - node.lineno + 1


@each_module
def test_imports_only_go_down(path):
    own = room_of(module_name(path))
    assert not own or own in FLOOR, f"{own} has no floor: add it to FLOORS in {Path(__file__).name}"
    for module, _, line in of_crat(path):
        room = room_of(module)
        allowed = (
            not room or room == own or FLOOR[room] < FLOOR[own] or FLOOR[room] == FLOOR[own] == 0
        )
        assert allowed, f"{path}:{line} imports {module}, which is not on a floor below"


@each_module
def test_a_room_is_used_through_its_face(path):
    """Another room's `__all__` has the name that is imported, or the module that holds it."""
    own = room_of(module_name(path))
    for module, name, line in of_crat(path):
        room = room_of(module)
        if room in ("", own) or f"crat.{room}" not in FACES:
            continue
        public = FACES[f"crat.{room}"] | {room}
        leaf = module.split(".")[-1]
        assert leaf in public or name in public, (
            f"{path}:{line}: {module} {name or ''} is not in {room}'s __all__"
        )


def test_no_chain_of_imports_is_long_and_none_is_a_circle():
    graph = {module_name(path): {m for m, _, _ in of_crat(path)} for path in MODULES}
    chains = {}

    def chain(module, above=()):
        assert module not in above, f"a circle of imports: {' > '.join([*above, module])}"
        if module not in chains:
            below = [chain(m, (*above, module)) for m in graph[module] - {module, "crat"}]
            chains[module] = [module, *max(below, key=len, default=[])]
        return chains[module]

    longest = max((chain(module) for module in graph), key=len)
    assert len(longest) <= LONGEST_CHAIN, f"{len(longest)} modules: {' > '.join(longest)}"


def test_few_files_lie_beside_the_rooms():
    beside = [path for path in MODULES if len(path.parts) == 2 and not path.stem.startswith("__")]
    assert {path.stem for path in beside} <= set(FLOORS[0].split())
    assert len(beside) <= 7
    assert (
        sum(path.parent.parent == Path("crat") and path.name == "__init__.py" for path in MODULES)
        <= 15
    )


def test_an_upward_import_is_seen():
    def names(text, path="crat/attacks/gradient.py"):
        return [found[:2] for found in imports(Path(path), ast.parse(text))]

    trainer = "crat.training.trainer"
    assert names(f"def f():\n    from {trainer} import train") == [(trainer, "train")]
    assert names("from ..training.trainer import train") == [(trainer, "train")]
    assert names("from ..training import trainer, x") == [(trainer, None), ("crat.training", "x")]
    assert names("from crat.training import trainer") == [(trainer, None)]
    assert names(f"import {trainer} as t") == [(trainer, None)]
    assert names("from .threat import Threat") == [("crat.attacks.threat", "Threat")]
    assert FLOOR[room_of("crat.attacks.threat")] < FLOOR[room_of(trainer)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_fit_on_a_screen(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 500, f"{path} has {text.count(chr(10))} lines"
    long = [
        f"{path}:{f.lineno} {f.name}: {length(f)} lines"
        for f in functions(ast.parse(text))
        if length(f) > 80
    ]
    assert not long, long


def test_most_functions_are_short():
    lengths = [length(f) for tree in MODULES.values() for f in functions(tree)]
    assert statistics.median(lengths) < 15


@each_module
def test_heavy_imports_stay_where_they_are_needed(path):
    """torchvision takes seconds and does not import beside a CPU-only torch; plots draws tables and
    knows no torch.
    """
    tree = MODULES[path]
    in_functions = {line for f in functions(tree) for _, _, line in imports(path, f)}
    for name, _, line in imports(path, tree):
        package = name.split(".")[0]
        assert package != "torchvision" or line in in_functions, (
            f"{path}:{line} imports torchvision at once"
        )
        assert package != "torch" or path.name != "plots.py", f"{path}:{line}: plots imports torch"


# What draws from torch's global generator unless it is given one: functions of torch, in-place ones
# of a tensor
DRAWS = {"bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm"}
DRAWS_IN_PLACE = {"bernoulli_", "exponential_", "normal_", "random_", "uniform_"}
SEEDS = {"manual_seed", "manual_seed_all", "seed"}


def global_draws(tree):
    """The calls that draw from torch's global generator, or seed it in a file that never forks it
    (`fork_rng`).
    """
    forks = any(
        isinstance(node, ast.Attribute) and node.attr == "fork_rng" for node in ast.walk(tree)
    )
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            owner, name = ast.unparse(call.func.value), call.func.attr
            seeds = name in SEEDS and owner in {"torch", "torch.random", "torch.cuda"} and not forks
            draws = (name in DRAWS and owner == "torch") or (
                name in DRAWS_IN_PLACE and owner != "nn.init"
            )
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
    forbid = (
        "import torch\ndef no(*args, **kwargs): raise RuntimeError('CUDA was asked for at "
        "import')\n"
        + "".join(
            f"torch.cuda.{name} = no\n"
            for name in ("_lazy_init", "is_available", "device_count", "current_device")
        )
    )
    everything = "".join(
        f"import {module_name(path)}\n" for path in MODULES if path.stem != "__main__"
    )
    run = subprocess.run(
        [sys.executable, "-c", forbid + everything], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr


def test_ruff_has_nothing_to_say():
    """Widths, names, imports, docstrings: what `make lint` asks of code and notebooks."""
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "check", "--no-cache", "."]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout
