"""The cost of a meta-step as a function of K and T, from what the race measured.

    seconds = c0 + c1 * T + c2 * K * T

c1 is what a task costs before any inner step, c2 what one inner step of one task does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metalearn.benchmarks.report import Row


class Fit(NamedTuple):
    """Milliseconds c0, c1, c2, the share of the variance that they explain, and how many cells."""

    model: str
    framework: str
    allocator: str
    fixed: float
    task: float
    step: float
    r2: float
    cells: int


def fits(rows: Sequence[Row]) -> list[Fit]:
    """A fit for every network and framework with four cells or more, two values each of K and T."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.cell.model, row.framework, row.allocator), []).append(row)
    return [
        fit(group)
        for group in groups.values()
        if len({r.cell for r in group}) >= 4
        and len({r.cell.steps for r in group}) > 1
        and len({r.cell.tasks for r in group}) > 1
    ]


def fit(rows: Sequence[Row]) -> Fit:
    """Least squares of the relative error, so that small cells count as much as large ones.

    R^2 is that of the seconds themselves.
    """
    steps = np.array([r.cell.steps for r in rows], dtype=np.float64)
    tasks = np.array([r.cell.tasks for r in rows], dtype=np.float64)
    seconds = np.array([r.cell.tasks / r.tasks.median for r in rows])
    design = np.stack([np.ones_like(tasks), tasks, steps * tasks], 1)
    solved, *_ = np.linalg.lstsq(design / seconds[:, None], np.ones_like(seconds), rcond=None)
    residual = seconds - design @ solved
    varied = ((seconds - seconds.mean()) ** 2).sum()
    r2 = 1 - (residual**2).sum() / varied if varied else 1.0
    first = rows[0]
    fixed, task, step = (float(1e3 * value) for value in solved)
    names = first.cell.model, first.framework, first.allocator
    return Fit(*names, fixed, task, step, float(r2), len(rows))
