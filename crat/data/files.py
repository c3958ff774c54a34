"""The folder of the images' files, and DataError, one line on their damage."""

from __future__ import annotations

import errno
import lzma
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
# what readers of images and archives raise on damaged files, and downloads
DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    HTTPException,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
# instead of numpy's advice to load whatever code lies in the file
NO_NPZ = "it is no npz of plain arrays"


class DataError(RuntimeError):
    """Missing or damaged images: one line with the fault, its place and how to mend it."""


def data_home() -> Path:
    """The folder of the images: CRAT_DATA, else `crat` in the user's cache folder."""
    if given := os.environ.get("CRAT_DATA"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        cache = "~/Library/Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "crat"


@contextmanager
def one_line(what: str, how: str = "") -> Iterator[None]:
    """Turns errors of files and networks inside into one line of DataError.

    what: the attempt, in words. how: the way to mend it.
    """
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "allow_pickle" in reason:
            reason = NO_NPZ
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason, how = "no space left", "free some, or set CRAT_DATA to another folder"
        line = f"{what}: {reason}; nothing was replaced"
        raise DataError(f"{line}; {how}" if how else line) from error
