"""No test reads or writes what the user has: data, models and notebook history live in a folder
that goes.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# the same examples every time, and no failure because another process had the cores
settings.register_profile("crat", deadline=None, derandomize=True, database=None)
settings.load_profile("crat")


def pytest_configure(config):
    folder = tempfile.TemporaryDirectory(prefix="crat-tests-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    for name in ("CRAT_DATA", "CRAT_RUNS", "IPYTHONDIR"):
        os.environ[name] = str(Path(folder.name, name.lower()))
    # workers share the cores: one thread each, set before torch is imported
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


# What is left out of the numeric tests, the second run on an emulated old CPU (make test-old-cpu),
# and why: folders, and files of other folders. All else is in it, new tests as well.
NOT_NUMERIC = {
    "processes, leases and disks": "batch store training/resume training/checkpoint",
    "files, names and texts": (
        "audit/imagenet_audit cli data/data data/data_damaged data/data_errors "
        "data/imagenet_labels data/registry data/sources data/superclasses defenses/methods house "
        "keys"
    ),
    "notebooks and their figures": "papers plots",
    "NumPy alone, which the setting of torch's instructions does not reach": "analysis",
}
LEFT_OUT = {name for names in NOT_NUMERIC.values() for name in names.split()}


# What takes longest is begun first, so that one core does not end alone on it (Makefile:
# --no-loadscope-reorder)
LONGEST = (
    "attack_strength every_method apple_gpu bench_attacks executors_killed distributed evaluate "
    "audit autoattack comparisons "
    "executors resume averaging reproduce site_browser site batch_errors course methods train"
)


def pytest_collection_modifyitems(items):
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST.split())}
    items.sort(
        key=lambda item: (
            -1 if item.path.suffix == ".ipynb" else place.get(item.path.name, len(place))
        )
    )


def pytest_addoption(parser):
    parser.addoption(
        "--numeric",
        action="store_true",
        help="leave out the files of NOT_NUMERIC in tests/conftest.py",
    )


def pytest_ignore_collect(collection_path, config):
    """Leaves out a folder, or a file, that is named in NOT_NUMERIC."""
    if not config.getoption("--numeric"):
        return None
    tests = Path(__file__).parent
    if not collection_path.is_relative_to(tests):
        return None
    place = collection_path.relative_to(tests).as_posix()
    name = place.replace("test_", "").removesuffix(".py")
    return True if name in LEFT_OUT else None


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    """An empty store for one test."""
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
