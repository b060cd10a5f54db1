"""Spread, distance, gate, ratios and the fit of the cost, each against what it has to be."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from metalearn.benchmarks import fit, report, speed
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.distance import distance
from metalearn.benchmarks.frameworks import plain
from metalearn.benchmarks.quartiles import spread
from tests.benchmarks.made import record

CELL = Cell("conv4-28", 5, 4)


def test_spread() -> None:
    assert spread([4, 1, 3, 2, 5]) == (3, 2, 4)
    assert spread([7.0]) == (7, 7, 7)


def test_distance() -> None:
    want = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    assert distance(want, want) == (0, pytest.approx(1))
    error, cosine = distance({"a": want["a"]}, want)
    assert (error, cosine) == (pytest.approx(0.8), pytest.approx(0.6))
    with pytest.raises(ValueError, match="a gradient of c"):
        distance({"c": want["a"]}, want)
    with pytest.raises(ValueError, match="of shape"):
        distance({"a": torch.zeros(3)}, want)


def test_the_gate() -> None:
    want = {"a": torch.randn(1000, generator=torch.Generator().manual_seed(0))}

    def reason(off: float, name: str = "learn2learn", own: float = 1e-6) -> str:
        return speed.gate({"a": want["a"] * (1 + off)}, want, name, own)["reason"]

    assert reason(5e-4) == "" and "wrong gradient: error 2.0e-03" in reason(2e-3)
    assert reason(5e-2, own=1e-2) == "" and reason(0.3, own=1.0)
    assert reason(0.3, "ours-bf16") == "" and reason(0.6, "ours-bf16")
    assert reason(math.nan)
    other = speed.gate({"b": want["a"]}, want, "higher", 0)
    assert "wrong gradient: a gradient of b" in other["reason"]


def test_the_steadiest_tasks_are_drawn() -> None:
    moves = dict(enumerate((1e-2, 4e-4, 1e-3, 6e-4, 2e-3, 3e-3, 1e-3, 1e-3)))

    class Reference:
        def ask(self, do: str, patience: float, cell: dict, path: str, steady: float) -> dict:
            asked.append(cell["draw"])
            return {"rounding_error": moves[cell["draw"]]}

    def drawn() -> int:
        asked.clear()
        settings = speed.Settings(("ours",))
        cell, told = speed.steady_cell(
            CELL, settings, cast(speed.Process, Reference()), Path("exact")
        )
        assert told["rounding_error"] == moves[cell.draw] and asked[-1] == cell.draw
        return cell.draw

    asked: list[int] = []
    assert drawn() == 1 and asked == [*range(8), 1]
    moves[2] = 1e-5
    assert drawn() == 2 and asked == [0, 1, 2]


def test_noise_of_a_rounding_moves_a_smooth_gradient_little() -> None:
    cell = Cell("mlp", 1, 1)
    exact = plain.reference(cell, "cpu")
    first, again, other = (plain.reference(cell, "cpu", torch.float64, n) for n in (1, 1, 2))
    assert distance(first, again)[0] == 0 < distance(first, other)[0] < 1e-4
    assert 0 < distance(first, exact)[0] < 1e-4
    elsewhere = plain.reference(replace(cell, draw=1), "cpu")
    assert distance(elsewhere, exact)[0] > 0.1


def test_rows_and_ratios() -> None:
    rows = report.rows([record(CELL)])
    assert len(rows) == 3  # higher has not been timed
    ours = rows[0]
    assert ours.tasks == pytest.approx((4, 4 / 1.1, 4 / 0.9))
    assert (ours.compile, ours.flops, ours.memory) == (2.0, 1e9, 50_000_000)
    assert report.ratios(rows, "ours", ("tuned", "default")) == {CELL: {"learn2learn": 2.0}}
    assert report.ratios(rows, "ours", ("tuned", "tuned")) == {CELL: {"learn2learn": 1.5}}


def test_the_fit_finds_the_costs_it_was_given() -> None:
    records = [
        record(Cell("mlp", k, t), ours=1.0 + 2.0 * t + 0.5 * k * t)
        for k, t in ((1, 1), (1, 4), (5, 1), (5, 4))
    ]
    found = next(f for f in fit.fits(report.rows(records)) if f.framework == "ours")
    assert (found.fixed, found.task, found.step) == pytest.approx((1000, 2000, 500))
    assert found.r2 == pytest.approx(1) and found.cells == 4
    assert fit.fits(report.rows(records[:3])) == []


def test_flops_are_linear_in_steps_and_tasks() -> None:
    at = {(k, t): plain.flops(Cell("mlp", k, t)) for k in (1, 2, 3) for t in (1, 4)}
    assert at[3, 1] - at[2, 1] == at[2, 1] - at[1, 1] > 0
    assert at[3, 4] == 4 * at[3, 1]
    # Forward of the queries alone: 10 points through 1x40, 40x40, 40x1, two a multiplication.
    assert at[1, 1] > 3 * 2 * 10 * (40 + 1600 + 40)


def test_a_guess_grows_with_the_work() -> None:
    one, two = (speed.guessed_seconds(Cell("mlp", 5, t), 10**9 * t, 1e11) for t in (1, 2))
    assert two == pytest.approx(2 * one)


def test_too_long_a_cell_is_recorded_with_its_reason(tmp_path: Path) -> None:
    settings = speed.Settings(("ours",), budget=0.001)
    machine = {"matmul": {"float32": 1e11}}
    process = speed.Process(settings.jobs[0], "cpu", 1, tmp_path / "log")
    told = speed.measure(CELL, settings, machine, process, {settings.jobs[0]: process}, [])
    assert process.process is None
    assert told["status"] == "not measured" and "it would take about" in told["reason"]
