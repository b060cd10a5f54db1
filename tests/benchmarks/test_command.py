"""`metalearn bench engine`: one real run, small, and every mistake in one line."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from metalearn.benchmarks import evaluation, metric
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import ours
from metalearn.errors import UsageError
from metalearn.gradients.peers.base import imported
from tests.command import metalearn

MISTAKES = {
    "": "use metalearn bench engine",
    "engin": "no benchmark 'engin'",
    "engine cell=quick": "no option cell (did you mean cells?)",
    "engine quick": "cannot read 'quick'; write name=value",
    "engine cells=conv5-28": "did you mean conv4-28?",
    "engine threads=x": "threads=x must be a whole number",
    "engine repeats=0": "repeats=0 must be a whole number, 1 or more",
    "engine threads=9999": "threads=9999, but this process has",
    "engine part=sped": "part=sped is not known (did you mean speed?)",
    "engine allocator=big": "allocator=big is not known; use default, tuned or both",
    "engine frameworks=lern2learn": "did you mean learn2learn?",
    "evaluate cells=mlp/K=1/T=4": "cells: mlp regresses, and has no accuracy",
    "evaluate repeat=3": "no option repeat (did you mean repeats?)",
    "metric methods=maml": "methods=maml is not known",
    "engine device=tpu": "device='tpu' is not known",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments: str, workplace: Path) -> None:
    assert MISTAKES[arguments] in metalearn("bench", *arguments.split()).mistake
    assert not list(workplace.iterdir())


@pytest.mark.slow
def test_a_small_race(workplace: Path) -> None:
    imported("learn2learn")
    command = (
        "bench", "engine", "cells=tiny/K=1/T=1", "threads=1", "repeats=1", "out=engine",
        "frameworks=ours@unroll:loop:fp32,learn2learn", "allocator=default", "device=cpu",
    )  # fmt: skip
    outcome = metalearn(*command)
    assert outcome.code == 0, outcome
    (record,) = json.loads(Path("engine/speed.json").read_text())
    assert record["flops"] > 1e6 and record["machine"]["matmul"]["float32"] > 1e9
    assert len(record["workers"]) == 2
    for worker in record["workers"].values():
        assert worker["reason"] == "" and worker["gradient_error"] < 1e-4
        assert len(worker["seconds"]) == 1 and worker["seconds"][0] > 0
        assert worker["first"] > 0 and worker["memory"] > 0
    for told in ("ours@unroll:loop:fp32", "learn2learn", "tiny K=1 T=1"):
        assert told in outcome.out
    assert Path("engine/speed.png").exists()
    held = Path("engine/cells.jsonl").read_bytes()
    assert metalearn(*command).code == 0
    assert Path("engine/cells.jsonl").read_bytes() == held


def test_evaluations_are_timed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported("learn2learn")
    monkeypatch.setattr(evaluation, "MANY", 2)  # nothing here is worth a compiler
    outcome = metalearn("bench", "evaluate", "cells=tiny/K=2/T=4", "threads=1", "repeats=2")
    assert outcome.code == 0, outcome
    kept = json.loads(Path("experiments/evaluation/speed.json").read_text())
    rows = {row["by"]: row for row in kept["rows"]}
    assert list(rows) == ["ours", "ours, not compiled", "learn2learn", "a plain loop"]
    assert len({round(row["accuracy"], 2) for row in rows.values()}) == 1
    for row in rows.values():
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
    ratios = np.array(rows["learn2learn"]["seconds"]) / rows["ours"]["seconds"]
    assert rows["learn2learn"]["ours_is"] == pytest.approx(list(ratios))
    told = Path("experiments/evaluation/speed.md").read_text()
    assert f"{np.median(ratios):.2f}x (" in told and "tiny K=2 T=4" in outcome.out


@pytest.mark.parametrize("method", metric.METHODS)
def test_methods_without_inner_steps_are_timed(method: str) -> None:
    rows = metric.measure(Cell("tiny", 1, 3), method, repeats=2, coming=3)
    names = ["ours", "ours, bf16-all", "a plain loop"]
    names += ["easyfsl"] if method == "protonet" and importlib.util.find_spec("easyfsl") else []
    assert [row["by"] for row in rows] == names
    assert rows[0]["cosine"] > 1 - 1e-6 and 0.9 < rows[1]["cosine"] < 1
    assert all(len(row["seconds"]) == 2 for row in rows) and rows[0]["ours_is"] == [1.0, 1.0]


def test_an_emulated_precision_is_not_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("tiny", 1, 1)
    monkeypatch.setattr(ours, "EMULATED", 0.0)  # whatever the machine
    with pytest.raises(UsageError, match="not timed: a matrix product in bf16 takes"):
        ours.prepare(cell, "cpu", "unroll:loop:bf16")
    monkeypatch.setattr(ours, "EMULATED", float("inf"))
    assert ours.prepare(cell, "cpu", "unroll:loop:bf16").step()


def test_a_fit_needs_cells(workplace: Path) -> None:
    assert "needs a network with four cells" in metalearn("bench", "engine", "part=fit").out
