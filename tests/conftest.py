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
# and why. All other files are in it, new ones as well.
NOT_NUMERIC = {
    "processes, leases and disks": (
        "batch batch_errors cluster executors executors_killed lease reproduce reproduce_anew "
        "resume store"
    ),
    "files, names and texts": (
        "checkpoint cli config data data_damaged data_errors estimates floors identity "
        "identity_code imagenet_audit "
        "imagenet_labels machines manifest methods names packaging published read_only registry "
        "site sources "
        "superclasses"
    ),
    "notebooks and their figures": "course notebooks plots plots_cfa plots_labels plots_tail",
    "NumPy alone, which the setting of torch's instructions does not reach": (
        "calibration claims comparisons mce metrics papers statistics_by_hand toy variation"
    ),
    "times, and tables of times": "bench_attacks bench_step bench_training",
}
LEFT_OUT = {f"test_{name}.py" for names in NOT_NUMERIC.values() for name in names.split()}


# What takes longest is begun first, so that one core does not end alone on it (Makefile:
# --no-loadscope-reorder)
LONGEST = (
    "attack_strength every_method bench_attacks executors_killed distributed evaluate audit "
    "autoattack comparisons "
    "executors resume averaging reproduce site batch_errors course methods train"
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
    return True if config.getoption("--numeric") and collection_path.name in LEFT_OUT else None


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    """An empty store for one test."""
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
