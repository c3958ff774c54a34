"""No test reads or writes what the user has: data, models and notebook history live in a folder that goes."""

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
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread each, set before torch is imported
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    """An empty store for one test."""
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path / "runs"))
