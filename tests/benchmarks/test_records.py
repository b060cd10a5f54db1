"""A benchmark goes on where it stopped, and does not try again what was too large."""

from dataclasses import replace
from pathlib import Path

import pytest

from metalearn.benchmarks import records, speed
from metalearn.benchmarks.cells import Cell
from tests.benchmarks.made import MACHINE, SETTINGS, record

CELL = Cell("conv4-28", 5, 4)


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    assert records.read(path) == []
    records.append(path, record(CELL))
    with path.open("a") as file:
        file.write('{"cell": {"mod')
    assert records.read(path) == [record(CELL)]
    records.append(path, record(replace(CELL, steps=1)))
    assert [r["cell"]["steps"] for r in records.read(path)] == [5, 1]


def test_done_is_the_same_cell_under_the_same_settings() -> None:
    held, saved = [record(CELL)], SETTINGS.saved()
    assert records.done(held, CELL, saved)
    assert not records.done(held, replace(CELL, tasks=1), saved)
    assert not records.done(held, CELL, {**saved, "threads": 2})


def test_cells_that_are_done_are_skipped(tmp_path: Path, monkeypatch) -> None:
    cells = [Cell("mlp", 1, t) for t in (1, 4, 16)]
    measured = []

    def measure(cell: Cell, *_: object) -> dict:
        measured.append(cell)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return record(cell)

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed.Process, "ask", lambda *_, **__: MACHINE)
    monkeypatch.setattr(speed.Process, "begin", lambda _: None)
    monkeypatch.setattr(speed.Process, "hello", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        speed.race(cells, SETTINGS, tmp_path, lambda line: None)
    found = speed.race(cells, SETTINGS, tmp_path, lambda line: None)
    assert measured == [cells[0], cells[1], cells[1], cells[2]]
    assert [Cell(**r["cell"]) for r in found] == cells
    speed.race(cells, SETTINGS, tmp_path, lambda line: None)
    assert len(measured) == 4
    # Only what was asked for comes back.
    assert len(speed.race(cells[:1], SETTINGS, tmp_path, lambda line: None)) == 1


def test_what_was_too_large_is_not_tried_again() -> None:
    held = record(CELL)
    held["workers"]["ours tuned"]["too_large"] = "prepare took longer than 9 s"
    saved = SETTINGS.saved()
    for cell, tried in (
        (replace(CELL, steps=20), False),
        (replace(CELL, tasks=16), False),
        (replace(CELL, steps=1), True),
        (replace(CELL, tasks=1, steps=20), True),
        (Cell("conv4-84", 5, 4), True),
    ):
        why = records.hopeless([held], cell, saved, "ours tuned")
        assert (why == "") is tried
        assert records.hopeless([held], cell, saved, "learn2learn default") == ""
    told = "not tried: failed at K=5 T=4 (prepare took longer than 9 s)"
    assert records.hopeless([held], CELL, saved, "ours tuned") == told
