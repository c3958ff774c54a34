"""What Windows does not have, taken away from a Python process: call `begin` first.

Modules that cannot be imported, names that are gone, and /proc without a file. Names that the
libraries of a POSIX system need for their own work (subprocess: os.fork's kin) are not in the list;
for them the tests read crat's source.
"""

import importlib
import importlib.abc
import os
import pathlib
import signal
import sys
import types

MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "pty", "tty", "syslog")
NAMES = {
    os: (
        "chown fchmod fork forkpty getgid getloadavg getpgid getpgrp getuid geteuid killpg mkfifo "
        "sched_getaffinity sched_setaffinity setpgid setsid statvfs sync sysconf uname nice"
    ),
    signal: "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGSTOP SIGQUIT alarm setitimer pthread_kill",
}
read_text = pathlib.Path.read_text


class _Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _read_text(self, *args, **settings):
    if str(self).startswith("/proc/"):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read_text(self, *args, **settings)


def begin():
    """Takes it all away. What stands on this system's own kind is imported before."""
    import subprocess

    import psutil

    for name in ("asyncio", "multiprocessing.util", "filelock", "numpy", "torch"):
        importlib.import_module(name)
    for library in (psutil, subprocess):  # their own way to end a process is this system's
        library.signal = types.SimpleNamespace(**vars(signal))
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Gone())
    pathlib.Path.read_text = _read_text
    for module, names in NAMES.items():
        for name in names.split():
            delattr(module, name)
