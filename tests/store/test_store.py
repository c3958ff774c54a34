"""Files appear whole or not at all, seeds and names are the same everywhere, what is damaged is
said to be.
"""

import errno
import hashlib
import os

import numpy as np
import pytest
import torch

from crat import store


def test_names_and_seeds_are_pinned():
    assert (
        store.digest({"b": 1, "a": [1, 2]})
        == store.digest({"a": [1, 2], "b": 1})
        == "94a786c3662bc7be"
    )
    assert (
        store.seed_for(0, "init")
        == int(hashlib.sha256(b'[0, "init"]').hexdigest()[:15], 16)
        == 494211107533203405
    )
    assert store.seed_for(0, 3) != store.seed_for(3, 0)
    assert store.seed_for(0, "init") == store.seed_for(0, "init") < 2**63


def test_arrays_and_tensors_come_back(tmp_path):
    arrays = {"x": np.arange(5, dtype=np.float16), "meta": np.array("{}")}
    store.write_arrays(tmp_path / "a.npz", arrays, compressed=True)
    assert all((store.read_arrays(tmp_path / "a.npz")[k] == v).all() for k, v in arrays.items())
    tensors = {"w": torch.randn(3, 4).T, "n": torch.tensor(3), "empty": torch.zeros(0)}
    store.write_tensors(tmp_path / "t.safetensors", tensors, {"epoch": 2})
    read, meta = store.read_tensors(tmp_path / "t.safetensors")
    assert meta == {"epoch": 2}
    assert all(torch.equal(read[k], v) for k, v in tensors.items())


def test_json_is_written_alike_whatever_order_it_came_in(tmp_path):
    store.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'


def test_no_pickle_goes_in_or_out(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        store.write_arrays(tmp_path / "a.npz", {"x": np.array([object()])})
    np.savez(tmp_path / "b.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(store.StoreError, match="is damaged"):
        store.read_arrays(tmp_path / "b.npz")


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "card.json"
    store.write_json(path, {"a": 1})

    class Stopped(Exception):
        pass

    def write_half():
        with store.written_whole(path) as temporary:
            temporary.write_text("half")
            raise Stopped

    with pytest.raises(Stopped):
        write_half()
    assert store.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["card.json"]


def test_a_full_disk_gets_one_line(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    store.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        store.StoreError, match=r"cannot write .*card.json: No space left on device; what was there"
    ):
        store.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert store.read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (store.read_json, "c.json"),
        (store.read_arrays, "a.npz"),
        (store.read_tensors, "t.safetensors"),
    ],
)
def test_missing_and_damaged(tmp_path, read, name):
    with pytest.raises(store.StoreError, match=f"{name} is missing"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"not what it should be")
    with pytest.raises(store.StoreError, match=f"{name} is damaged .*; remove it to make it anew"):
        read(tmp_path / name)


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "card.json").mkdir()
    with pytest.raises(store.StoreError, match=r"^cannot read .*card.json: Is a directory$"):
        store.read_json(tmp_path / "card.json")


def test_half_written_outcomes_are_removed_as_well(tmp_path):
    (tmp_path / "eval").mkdir()
    for name in (".half-card.json", "eval/.half-a.npz", "eval/a.npz"):
        (tmp_path / name).touch()
    store.remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.npz"]


def test_where_runs_live(monkeypatch, tmp_path):
    monkeypatch.setenv("CRAT_RUNS", str(tmp_path))
    assert store.home() == tmp_path
    monkeypatch.delenv("CRAT_RUNS")
    assert store.home().name == "runs"
