"""Runs arranged as a table: a row for each method, a column for what it was tested on, a cell of
runs that differ in their seed alone."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metalearn.errors import UsageError, nearest
from metalearn.evaluation.statistics import SHARES
from metalearn.sweeps.runs import FinishedRun
from metalearn.sweeps.uncertainty import Estimate, difference, holm, mean_over_seeds

_ALIKE = {
    "manifest_hash": "test episodes", "norm_policy": "norm policy", "queries": "queries",
    "transductive": "transduction",
}  # fmt: skip
"""What the runs of a cell, and those of a column that are compared, must agree in."""


class Row(NamedTuple):
    """settings: by the table's keys. cells: the runs by condition, in the order of their seeds."""

    settings: dict[str, Any]
    transductive: bool
    cells: dict[str, list[FinishedRun]]


class Arranged(NamedTuple):
    """keys: the settings that tell rows apart. more: what differs between them besides.
    conditions: the columns."""

    keys: list[str]
    more: list[str]
    conditions: list[str]
    rows: list[Row]
    measure: str


def arrange(runs: Sequence[FinishedRun], by: Sequence[str] | None = None) -> Arranged:
    """The table of `runs`. by: the settings that tell rows apart; None for as few as do it of all
    that vary among runs with one condition.

    Raises UsageError for a setting in `by` that no run has, and for runs that cannot stand in one
    cell: measured on other episodes, with another norm policy, two of one seed.
    """
    if len(measures := {run.measure for run in runs}) > 1:
        raise UsageError("classification and regression cannot stand in one table; name one kind")
    conditions = list(dict.fromkeys(run.condition for run in sorted(runs, key=_size)))
    keys, more = _varying(runs, conditions) if by is None else (list(by), [])
    known = {key for run in runs for key in run.settings}
    for key in keys:
        if key not in known:
            raise UsageError(f"by={key} is no setting of these runs{nearest(key, known)}")
    rows: dict[tuple[str, ...], Row] = {}
    for run in runs:
        settings = {key: run.settings.get(key) for key in keys}
        row = rows.setdefault(
            tuple(map(str, settings.values())), Row(settings, run.result["transductive"], {})
        )
        row.cells.setdefault(run.condition, []).append(run)
    for row in rows.values():
        for cell in row.cells.values():
            cell.sort(key=lambda run: run.seed)
            _check(cell)
    ordered = sorted(rows.values(), key=lambda row: row.transductive)
    return Arranged(keys, more, conditions, ordered, measures.pop())


def _size(run: FinishedRun) -> tuple[str, int, int]:
    """What conditions are ordered by: data set, ways, shots."""
    told = run.result
    return told["dataset"], told.get("ways") or 0, told["shots"] or 0


def _varying(runs: Sequence[FinishedRun], conditions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings that tell apart all that differ, and the others. `algorithm` first: it names what
    follows it."""
    groups: dict[tuple[int, ...], str] = {}
    every = dict.fromkeys(key for run in runs for key in run.settings)
    for key in sorted(every, key=lambda key: key != "algorithm"):
        column = {
            c: {str(r.settings.get(key)) for r in runs if r.condition == c} for c in conditions
        }
        if max(map(len, column.values())) > 1:
            values = [str(run.settings.get(key)) for run in runs]
            groups.setdefault(tuple(map(values.index, values)), key)
    parts, keys, apart = list(groups), list[str](), [()] * len(runs)
    for part in parts:
        split = [(*before, own) for before, own in zip(apart, part, strict=True)]
        if len(set(split)) > len(set(apart)):
            apart, keys = split, [*keys, groups[part]]
    return keys or ["algorithm"], [key for key in groups.values() if key not in keys]


def _check(cell: Sequence[FinishedRun]) -> None:
    first = cell[0]
    for run in cell[1:]:
        pair = f"{first.folder} and {run.folder} cannot stand in one cell"
        for name, word in _ALIKE.items():
            if first.result[name] != run.result[name]:
                raise UsageError(f"{pair}: their {word} differ ({_shown(first, run, name)})")
        names = [n for n in first.settings if first.settings[n] != run.settings.get(n)]
        if names:
            raise UsageError(f"{pair}: {names[0]} differs; add it to by=")
    for one, other in itertools.pairwise(cell):
        if one.seed == other.seed:
            raise UsageError(
                f"{one.folder} and {other.folder} are both of seed {one.seed}; leave one out"
            )


def _shown(first: FinishedRun, run: FinishedRun, name: str) -> str:
    return " and ".join(str(r.result[name])[:12] for r in (first, run))


class Scored(NamedTuple):
    """A cell in numbers. gap: to the best of its kind in the column, None for that itself or where
    the two saw other episodes. p: that there is no gap, corrected for all of the column."""

    estimate: Estimate
    seeds: int
    episodes: int
    best: bool
    gap: Estimate | None
    p: float | None


def scores(table: Arranged, confidence: float = 0.95) -> list[dict[str, Scored]]:
    """Each row's cells in numbers. The best of a column is one of the transductive methods and one
    of the others; all else is compared with its own, on the same episodes, by Holm's correction."""
    made: list[dict[str, Scored]] = [{} for _ in table.rows]
    for condition in table.conditions:
        for kind in (False, True):
            there = [
                (place, row.cells[condition])
                for place, row in enumerate(table.rows)
                if row.transductive == kind and condition in row.cells
            ]
            if there:
                _score(there, condition, table.measure, confidence, made)
    return made


def matrix(cell: Sequence[FinishedRun]) -> np.ndarray:
    """`[S, E]`: every episode of every seed."""
    return np.stack([run.values for run in cell])


def _score(
    there: Sequence[tuple[int, Sequence[FinishedRun]]], condition: str, measure: str,
    confidence: float, made: list[dict[str, Scored]],
) -> None:  # fmt: skip
    sign = 1 if measure in SHARES else -1
    top = max(there, key=lambda one: sign * matrix(one[1]).mean())
    hashes = top[1][0].result["manifest_hash"]
    gaps = {
        place: difference(matrix(cell), matrix(top[1]), confidence)
        for place, cell in there
        if place != top[0] and cell[0].result["manifest_hash"] == hashes
    }
    corrected = dict(zip(gaps, holm([p for _, p in gaps.values()]), strict=True))
    for place, cell in there:
        values = matrix(cell)
        made[place][condition] = Scored(
            estimate=mean_over_seeds(values, confidence),
            seeds=len(values),
            episodes=values.shape[1],
            best=place == top[0],
            gap=gaps[place][0] if place in gaps else None,
            p=corrected.get(place),
        )
