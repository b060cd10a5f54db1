"""A run that dies at any moment and goes on ends bit for bit where an unbroken one does."""

import itertools
import math
import os
import shutil

import pytest
import torch
from torch import nn

from metalearn.functional.norms import BatchNorm
from metalearn.tracking import JsonLines, RunInfo, Tracker, read_records
from metalearn.training import checkpoint
from metalearn.training.loop import fit
from metalearn.training.stage import resume
from tests.training.problems import Recorder, Trained, flat, problem, same, trained

SETTINGS = {"steps": 6, "validate_every": 3, "checkpoint_every": 2, "keep": 1}


class Killed(BaseException):
    """Nothing in the library catches this, as nothing catches SIGKILL."""


class Fuse(Recorder):
    """Ends the process, so to say, at its n-th event; each file operation has several."""

    def __init__(self, patch: pytest.MonkeyPatch, n: float) -> None:
        super().__init__()
        self.n, self.count = n, 0
        write, replace, remove = checkpoint._write, os.replace, shutil.rmtree

        def half_written(path, data):
            path.write_bytes(data[: len(data) // 2])
            self.event()
            write(path, data)
            self.event()

        def replaced(source, target):
            self.event()
            replace(source, target)
            self.event()

        def half_removed(path, ignore_errors=False):
            if path.exists():
                self.event()
                next(path.iterdir()).unlink()
                self.event()
            remove(path, ignore_errors=ignore_errors)

        patch.setattr(checkpoint, "_write", half_written)
        patch.setattr(checkpoint.os, "replace", replaced)
        patch.setattr(checkpoint.shutil, "rmtree", half_removed)

    def event(self) -> None:
        self.count += 1
        if self.count == self.n:
            raise Killed

    def scalars(self, step, values) -> None:
        self.event()

    def episodes(self, step, split, values) -> None:
        self.event()


def process(folder, n=math.inf, **changes):
    """What one process does, dying at event n; returns the state, and the events there were."""
    with pytest.MonkeyPatch.context() as patch:
        state = Trained(problem(**{**SETTINGS, **changes}))
        going_on = resume(state.stage, state.position, folder, lambda line: pytest.fail(line))
        sink = JsonLines()
        sink.start(RunInfo("n", folder, {}, None, 0, 6, state.step if going_on else None))
        fuse = Fuse(patch, n)
        try:
            # Once before the file of records is written, once after.
            fit(state.stage, state.position, folder, Tracker([fuse, sink, fuse]))
        finally:
            sink.close("finished")
    return state, fuse.count


def test_killed_at_every_single_moment(tmp_path) -> None:
    want, events = process(tmp_path / "whole")
    assert want.step == 6 and events > 50

    def records(folder):
        return [
            {
                name: value
                for name, value in record.items()
                if not name.startswith(("time", "tasks", "peak"))
            }
            for record in read_records(folder / "metrics.jsonl")
        ]

    reached = set()
    for n in range(1, events + 1):
        folder = tmp_path / f"killed{n}"
        with pytest.raises(Killed):
            process(folder, n)
        state, more = process(folder)
        assert more < events or n < 20
        same(state, want)
        assert records(folder) == records(tmp_path / "whole"), n
        reached.add(more)
    assert len(reached) > 4, "resumed at several different checkpoints"


def test_killed_again_and_again(tmp_path) -> None:
    """Every process lives for so long, until one reaches the end."""
    want, _ = process(tmp_path / "whole")
    for lives in (17, 23, 31):
        for attempt in itertools.count(1):
            try:
                state, _ = process(tmp_path / f"life{lives}", lives)
                break
            except Killed:
                assert attempt < 12, "no progress"
        assert attempt > 1
        same(state, want)


def test_training_moves_and_seeds_matter(tmp_path) -> None:
    """So that equality above says something."""
    state, done = trained(tmp_path, **SETTINGS)
    fresh = problem()
    assert done and state.step == 6
    for name, tensor in flat(fresh).items():
        if name.startswith("meta/init"):
            assert not torch.equal(tensor, flat(state)[name]), name


def dropout() -> nn.Module:
    """Layers that draw, and layers that keep averages."""
    return nn.Sequential(nn.Linear(1, 8), BatchNorm(8, "running"), nn.Dropout(0.5), nn.Linear(8, 1))


class Stop(Recorder):
    """Dies after a step."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def scalars(self, step, values) -> None:
        super().scalars(step, values)
        if step == self.after:
            raise Killed


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6])
def test_random_layers_and_running_averages(tmp_path, after) -> None:
    """torch's global generator, which dropout draws from, is part of a checkpoint."""

    def run(folder, *sinks):
        return trained(folder, sinks, build=dropout, **SETTINGS)[0]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        want = run(tmp_path / "whole")
        torch.manual_seed(2)
        other = run(tmp_path / "other")
        assert not torch.equal(flat(want)["meta/init/0.weight"], flat(other)["meta/init/0.weight"])
        start = problem(dropout).meta["buffers"]["1.running_mean"]
        assert not torch.equal(want.meta["buffers"]["1.running_mean"], start)

        torch.manual_seed(1)
        with pytest.raises(Killed):
            run(tmp_path / "killed", Stop(after))
        # A new process starts from the same default seed as the first one did; whatever it
        # draws before it resumes is forgotten.
        torch.manual_seed(1)
        if after > 2:
            torch.rand(13)
        same(run(tmp_path / "killed"), want)


def test_a_damaged_newest_checkpoint(tmp_path) -> None:
    want, _ = trained(tmp_path / "whole", **SETTINGS)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", sinks=(Stop(5),), **{**SETTINGS, "keep": 2})
    newest = tmp_path / "killed" / "checkpoints" / "step-00000004"
    with (newest / "tensors.safetensors").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    warnings: list[str] = []
    recorder = Recorder()
    state, _ = trained(
        tmp_path / "killed", sinks=(recorder,), warnings=warnings, **{**SETTINGS, "keep": 2}
    )
    assert warnings == [
        f"{newest} is damaged: its content does not match its sha256; going on from the one before"
    ]
    assert [step for step, _ in recorder.scalars_by_step] == [4, 5, 6]
    same(state, want)
