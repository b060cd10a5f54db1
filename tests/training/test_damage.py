"""A crash or a damaged disk costs one checkpoint; nothing that is read runs code."""

import errno
import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save

from metalearn.training import checkpoint
from metalearn.training.checkpoint import (
    DamagedCheckpoint,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)


def state(step: int) -> dict:
    return {"step": step, "rate": 0.125, "list": [1, 2], "weight": torch.full((5,), float(step))}


@pytest.fixture
def two(tmp_path):
    """Checkpoints of steps 1 and 2; the second one is to be damaged."""
    save_checkpoint(tmp_path, 1, state(1))
    return save_checkpoint(tmp_path, 2, state(2))


def refused(path) -> str:
    """What is said of the damaged checkpoint, which the one before has to stand in for."""
    with pytest.raises(DamagedCheckpoint) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line
    warnings: list[str] = []
    found = latest_checkpoint(path.parent, warnings.append)
    assert found is not None and found["step"] == 1
    assert warnings == [f"{line}; going on from the one before"]
    return line.removeprefix(f"{path} ")


def test_every_byte_counts(two) -> None:
    """One flipped bit, anywhere in either file."""
    for name in ("tensors.safetensors", "state.json"):
        file = two / name
        whole = file.read_bytes()
        for place in range(len(whole)):
            harmed = bytearray(whole)
            harmed[place] ^= 1 << (place % 8)
            file.write_bytes(harmed)
            try:
                loaded = load_checkpoint(two)
            except DamagedCheckpoint as error:
                assert "\n" not in str(error)
            else:
                pytest.fail(f"{name} was read with byte {place} changed: {loaded}")
        file.write_bytes(whole)
    assert load_checkpoint(two)["step"] == 2


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_file(two, name, part) -> None:
    data = (two / name).read_bytes()
    (two / name).write_bytes(data[: int(len(data) * part)])
    if name == "state.json":
        assert refused(two) == "cannot be read (JSONDecodeError)"
    else:
        assert refused(two) == "is damaged: its content does not match its sha256"


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_missing_file(two, name) -> None:
    (two / name).unlink()
    assert refused(two) == "cannot be read (FileNotFoundError)"


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "{}", '{"version": 2}'])
def test_a_record_of_something_else(two, text) -> None:
    (two / "state.json").write_text(text)
    assert refused(two).startswith("cannot be read (")


def test_another_format(two) -> None:
    record = json.loads((two / "state.json").read_text())
    (two / "state.json").write_text(json.dumps({**record, "version": 1}))
    assert refused(two) == "has format 1, this version reads 2"


def test_a_file_in_the_place_of_the_folder(two) -> None:
    shutil.rmtree(two)
    two.write_bytes(b"")
    assert refused(two) == "cannot be read (NotADirectoryError)"


def test_all_damaged(two) -> None:
    for path in two.parent.iterdir():
        (path / "state.json").unlink()
    warnings: list[str] = []
    assert latest_checkpoint(two.parent, warnings.append) is None
    assert [line.partition("; ")[2] for line in warnings] == [
        "going on from the one before",
        "going on from the beginning",
    ]


class Planted:
    """Unpickling this creates a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
@pytest.mark.parametrize("honest_hash", [False, True])
def test_nothing_is_unpickled(two, tmp_path, how, honest_hash) -> None:
    target = tmp_path / "executed"
    hostile = {"weight": Planted(target)}
    file = two / "tensors.safetensors"
    file.write_bytes(pickle.dumps(hostile)) if how == "pickle" else torch.save(hostile, file)
    if honest_hash:  # an attacker can compute it
        record = json.loads((two / "state.json").read_text())
        content = file.read_bytes() + json.dumps([2, record["state"]]).encode()
        record["sha256"] = hashlib.sha256(content).hexdigest()
        (two / "state.json").write_text(json.dumps(record))
        assert refused(two) == "is no checkpoint (SafetensorError)"
    else:
        assert refused(two) == "is damaged: its content does not match its sha256"
    two.mkdir(exist_ok=True)  # what was refused has been moved aside
    (two / "state.json").write_bytes(pickle.dumps(hostile))
    assert refused(two).startswith("cannot be read (")
    assert not target.exists()
    pickle.loads(pickle.dumps(hostile))
    assert target.exists(), "the trap itself has to work"


def test_tensors_that_the_record_lacks(two) -> None:
    record = json.loads((two / "state.json").read_text())
    data = save({"other": torch.ones(1)})
    content = data + json.dumps([2, record["state"]]).encode()
    record["sha256"] = hashlib.sha256(content).hexdigest()
    (two / "tensors.safetensors").write_bytes(data)
    (two / "state.json").write_text(json.dumps(record))
    assert refused(two) == "is no checkpoint (KeyError)"


class Killed(BaseException):
    """Nothing in the library catches this, as nothing catches SIGKILL."""


@pytest.mark.parametrize("stage", ["nothing", "half the tensors", "tensors", "half", "both"])
def test_a_crash_while_writing(two, monkeypatch, stage) -> None:
    """What is there of step 3 when the process ends is not taken for a checkpoint."""
    original = checkpoint._write
    stages = ["nothing", "half the tensors", "tensors", "half", "both"]

    def write(path, data):
        first = path.name == "tensors.safetensors"
        if stage == "nothing":
            raise Killed
        if stage == ("half the tensors" if first else "half"):
            path.write_bytes(data[: len(data) // 2])
            raise Killed
        if stage == "tensors" and not first:
            raise Killed
        original(path, data)

    def replace(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", write)
        if stage == "both":
            patch.setattr(checkpoint.os, "replace", replace)
        with pytest.raises(Killed):
            save_checkpoint(two.parent, 3, state(3))
    left = two.parent / ".partial-00000003"
    written = {"nothing": 0, "half the tensors": 1, "tensors": 1, "half": 2, "both": 2}[stage]
    assert len(list(left.iterdir())) == written, stages
    warnings: list[str] = []
    found = latest_checkpoint(two.parent, warnings.append)
    assert found is not None and found["step"] == 2 and not warnings
    prune_checkpoints(two.parent, 1)
    save_checkpoint(two.parent, 3, state(3))
    found = latest_checkpoint(two.parent)
    assert found is not None and torch.equal(found["weight"], torch.full((5,), 3.0))
    assert sorted(path.name for path in two.parent.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_full_disk_leaves_the_earlier_ones(two, monkeypatch) -> None:
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(two.parent, 3, state(3))
    found = latest_checkpoint(two.parent)
    assert found is not None and found["step"] == 2


def test_a_damaged_checkpoint_is_moved_aside(two) -> None:
    """Were it still counted among the newest, pruning would delete the good one before it."""
    (two / "state.json").write_text("")
    assert latest_checkpoint(two.parent) is not None
    save_checkpoint(two.parent, 3, state(3))
    prune_checkpoints(two.parent, keep=2)
    kept = sorted(path.name for path in two.parent.iterdir())
    assert kept == ["damaged-step-00000002", "step-00000001", "step-00000003"]
