"""The working store: one folder a run, named by the hash of what was asked; files appear whole or not at all.

A run's folder holds card.json (what it is), checkpoint.safetensors (everything needed to go on), best.safetensors,
history.csv, trace.npz and, under eval/, the outcome of each attack on each sample. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY = ".half-"  # begins the names of files that are being written
FORMAT = 1  # raise it when the meaning of what is stored changes: old runs are then trained anew, never misread


class StoreError(RuntimeError):
    """A file of the store that is missing, damaged or cannot be written: one line with the file and what to do."""


def home() -> Path:
    """Where runs live: CRAT_RUNS, else runs/ in a checkout, else the working directory's runs/."""
    if "CRAT_RUNS" in os.environ:
        return Path(os.environ["CRAT_RUNS"]).expanduser()
    return root() / "runs"


def figures_home() -> Path:
    """Where figures/<profile>/<notebook> go: CRAT_FIGURES, else figures/ in a checkout or the working directory."""
    return Path(given).expanduser() if (given := os.environ.get("CRAT_FIGURES")) else root() / "figures"


def must_be_writable(folder: Path, variable: str) -> None:
    """Raises StoreError, with the environment variable that names another folder, where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror or error
        raise StoreError(f"cannot write to {folder}: {why}; set {variable} to a folder of yours") from None


def root() -> Path:
    """The checkout that this package is part of, else (installed from a wheel) the working directory."""
    checkout = Path(__file__).parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def results_home() -> Path:
    """The published results of a checkout; raises StoreError for an installed package, which ships none."""
    folder = Path(__file__).parents[1] / "results"
    if not folder.is_dir():
        raise StoreError(
            f"no published results at {folder}: they come with a clone of the repository, not with the wheel"
        )
    return folder


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed derived from its parts (run seed, epoch, purpose ...), the same on every machine.

    Each epoch draws from its own seed, so a resumed run needs no saved generator state.
    """
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:15], 16)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it on a clean exit; raises StoreError where it cannot."""
    handle, name = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        yield Path(name)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; what was there before is unchanged"
        ) from error
    finally:
        if name and os.path.exists(name):
            os.unlink(name)


def remove_half_written(folder: Path) -> None:
    """Removes what a killed session left of its writings: the temporary names of `written_whole`, eval/ included."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads a .npz without pickle; raises StoreError where it is missing or damaged (its CRC is checked)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except Exception as error:  # a damaged zip fails in many ways; all mean the same to the reader
        raise StoreError(f"{path} is damaged ({type(error).__name__}); remove it to make it anew") from None


def write_tensors(path: Path, tensors: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
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
    """The tensors (on the CPU) and metadata of `write_tensors`; raises StoreError on a missing or altered file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            header = file.metadata() or {}
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except (SafetensorError, OSError, struct.error, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); remove it to make it anew") from None
    if header.get("sha256") != _checksum(tensors, header.get("meta", "")):
        raise StoreError(f"{path} was altered after it was written (SHA-256 differs); remove it to make it anew")
    return tensors, json.loads(header["meta"])


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of named tensors: what outcomes are tied to."""
    return _checksum(tensors, "")[:16]


def _checksum(tensors: Mapping[str, Any], text: str) -> str:
    import torch

    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
