"""Freed memory is kept for the next tensors where the C library can be told so."""

import platform
import subprocess
import sys

import pytest

from crat import device

# a fresh process: the setting is the process's, and so is what its heap looks like
FAULTS = """
import resource, torch
from crat.device import keep_freed_memory
assert keep_freed_memory()
def filled():
    return [torch.ones(1 << 20) for _ in range(8)]  # 32 MiB
for _ in range(3):
    filled()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    filled()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_a_page_fault():
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    pages_filled = 10 * 8 * (4 << 20) // (64 << 10)  # of the largest usual size, 64 KiB
    assert int(found.stdout) < pages_filled / 10


@pytest.mark.parametrize("raised", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, raised):
    def absent(name):
        raise raised("no such library")

    monkeypatch.setattr(device.ctypes, "CDLL", absent)
    assert device.keep_freed_memory() is False
