"""The working store: one folder for each run, named by the hash of its config.

A run's folder holds card.json (what it is), checkpoint.safetensors (everything needed to go on),
best.safetensors, history.csv, trace.npz and, under eval/, the outcome of each attack on each
sample. Nothing in it is a pickle; every file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUMS = "SHA256SUMS"  # names the published files of a run's folder, and those of results/
TEMPORARY = ".half-"  # begins the names of files that are being written
PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds between the tries to take the place of a file
# raise it when the meaning of stored files changes: old runs are then trained anew, never misread
FORMAT = 1


class StoreError(RuntimeError):
    """A file of the store that is missing, damaged or not writable; one line names the remedy."""


def home() -> Path:
    """The folder of runs: CRAT_RUNS, else runs/ in a checkout, else in the working directory."""
    if "CRAT_RUNS" in os.environ:
        return Path(os.environ["CRAT_RUNS"]).expanduser()
    return root() / "runs"


@dataclass(frozen=True)
class Store:
    """The places of runs.

    root: the folder of the runs that are made here.
    published: that of the published runs, results/ (None: they are left aside).
    """

    root: Path
    published: Path | None = None

    @classmethod
    def usual(cls) -> Store:
        """The store of CRAT_RUNS, with the published runs first.

        So a run's numbers have one origin.
        """
        return cls(home(), published_home())

    @classmethod
    def recomputed(cls) -> Store:
        """The store in which everything is trained again, whatever was published."""
        return cls(home() / "recomputed")

    @classmethod
    def chosen(cls, recompute: bool) -> Store:
        """`recomputed` or `usual`."""
        return cls.recomputed() if recompute else cls.usual()

    def published_run(self, dataset: str, name: str) -> Path | None:
        """The folder of a run under results/; None where it was not published."""
        folder = self.published and self.published / dataset / name
        return folder if folder and folder.is_dir() else None


def figures_home() -> Path:
    """The folder of figures/<profile>/<notebook>: CRAT_FIGURES, else figures/ below `root`."""
    given = os.environ.get("CRAT_FIGURES")
    return Path(given).expanduser() if given else root() / "figures"


def must_be_writable(folder: Path, variable: str) -> None:
    """Raises StoreError where a folder cannot be written.

    variable: the environment variable that names another folder, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or error
        raise StoreError(
            f"cannot write to {folder}: {why}; set {variable} to a folder of yours"
        ) from None


def root() -> Path:
    """The checkout that holds this package, else (installed from a wheel) the working directory."""
    checkout = Path(__file__).parents[2]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def results_home() -> Path:
    """The folder of a checkout's published results, whose tables and claims are as published.

    Raises StoreError for an installed package, which ships none, and where one was altered
    (`as_published`).
    """
    folder = published_home()
    if not folder.is_dir():
        raise StoreError(
            f"no published results at {folder}: they come with a clone of the repository, not with "
            f"the wheel"
        )
    for path in loose_results(folder):
        as_published(path, folder)
    return folder


def published_home() -> Path:
    """The folder of published results in a checkout, whether or not it exists."""
    return Path(__file__).resolve().parents[2] / "results"


def loose_results(results: Path) -> list[Path]:
    """The files of results/ outside the runs: claims of a data set, numbers printed in papers."""
    loose = []
    for path in [*results.glob("*"), *results.glob("*/*")]:
        hidden = path.name.startswith(".")
        if path.is_file() and path.name != SUMS and not hidden:
            loose.append(path)
    return sorted(loose)


def files_of_run(folder: Path) -> set[str]:
    """The relative names of all files of a published run but its SHA256SUMS and hidden ones."""
    files = set()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        shown = [name for name in names if not name.startswith(".")]
        files |= {(inside + name).removeprefix("./") for name in shown}
    return files - {SUMS}


def published_file(run: Path, name: str) -> Path | None:
    """A file of a published run, as it was published; None where the run has no such file.

    Raises StoreError, one line, where it was altered, or where any file of the run is missing or
    was added.
    """
    published, present = _sums(run), files_of_run(run)
    as_published(run / SUMS, run.parents[1])
    if missing := sorted(published.keys() - present):
        raise StoreError(
            f"{run / missing[0]} was published and is missing; `git checkout` brings it back"
        )
    if added := sorted(present - published.keys()):
        raise StoreError(
            f"{run / added[0]} was never published ({SUMS} does not name it); remove it"
        )
    return as_published(run / name, run) if name in published else None


def as_published(path: Path, folder: Path) -> Path:
    """A published file, checked against the SHA256SUMS of its folder.

    folder: a published run's, or results/ itself, whose SHA256SUMS names those of the runs.
    Raises StoreError, one line, where the file was altered or never published.
    """
    published_digest = _sums(folder).get(path.relative_to(folder).as_posix())
    if published_digest is None:
        raise StoreError(
            f"{path} was never published ({folder / SUMS} does not name it); remove it"
        )
    if sha256(path) != published_digest:
        raise StoreError(
            f"{path} is not as it was published (SHA-256 differs); `git checkout` brings it back"
        )
    return path


def _sums(folder: Path) -> dict[str, str]:
    """Relative name -> SHA-256, as `sha256sum` writes it."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise StoreError(
            f"{folder} has no {SUMS}, which names its published files; "
            f"`git checkout` brings it back"
        ) from None
    sums = {}
    for line in lines:
        checksum, _, name = line.partition("  ")
        sums[name] = checksum
    return sums


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex digits; raises StoreError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Writes SHA256SUMS over files in a folder, for `sha256sum -c SHA256SUMS` there."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_text(folder / SUMS, "".join(lines))


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed derived from its parts (run seed, epoch, purpose ...), equal on every machine.

    Each epoch draws from a separate seed, so a resumed run needs no saved generator state.
    """
    text = json.dumps(parts)
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it on a clean exit.

    Raises StoreError where it cannot be written; `path` is then unchanged.
    """
    handle, name = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f"{TEMPORARY}{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        yield Path(name)
        with open(name, "r+b") as written:  # Windows syncs no file that is open for reading only
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        _replace(name, path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; what was there before is unchanged"
        ) from error
    finally:
        if name and os.path.exists(name):
            os.unlink(name)


def _replace(name: str, path: Path) -> None:
    """Puts a finished file in its place, of which Windows lets nobody take one that is being read.

    A reader is gone in a moment; where it is not, the error is the last try's.
    """
    for pause in PAUSES:
        try:
            os.replace(name, path)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(name, path)


def remove_half_written(folder: Path) -> None:
    """Removes the temporary files of `written_whole` that a killed session left, eval/ included."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, with the same bytes on every system."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented, for people to read."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; raises StoreError where it is missing, damaged or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); remove it to make it anew") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes named arrays as .npz, atomically and without pickle."""
    save = np.savez_compressed if compressed else np.savez
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        save(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Reads a .npz without pickle; raises StoreError where it is missing or its CRC is wrong.

    names: of the arrays that are read (None: all); one that is not there is damage, too.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except Exception as error:  # a damaged zip fails in many ways; all mean the same to the reader
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}); remove it to make it anew"
        ) from None


def write_tensors(
    path: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> None:
    """Writes torch tensors as safetensors with JSON metadata and a SHA-256 over both."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(meta or {}), sort_keys=True)
    with written_whole(path) as temporary:
        try:
            save_file(flat, temporary, metadata={"meta": text, "sha256": _checksum(flat, text)})
        except SafetensorError as error:  # its own wording of a full disk
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors (on the CPU) and metadata of `write_tensors`.

    Raises StoreError where the file is missing, damaged or altered.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # copies: a tensor that lies in the mapped file holds it open, and Windows then lets
            # nobody write a new one in its place
            names = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}
            header = file.metadata() or {}
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (SafetensorError, OSError, struct.error, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); remove it to make it anew") from None
    if header.get("sha256") != _checksum(tensors, header.get("meta", "")):
        raise StoreError(
            f"{path} was altered after it was written (SHA-256 differs); remove it to make it anew"
        )
    return tensors, json.loads(header["meta"])


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of named tensors, to which outcomes are tied."""
    return _checksum(tensors, "")[:16]


def _checksum(tensors: Mapping[str, Any], text: str) -> str:
    import torch

    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        total.update(name.encode())
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy())
    return total.hexdigest()


def halved(logits: np.ndarray) -> np.ndarray:
    """Logits as float16; as float32 where any is beyond float16's 65504."""
    with np.errstate(over="ignore"):
        half = logits.astype(np.float16)
    return half if np.isfinite(half).all() else logits.astype(np.float32)
