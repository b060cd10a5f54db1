"""The pictures of a report: each is drawn where the runs have what it shows, else None."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metalearn.sweeps.cells import Arranged, Row, Scored
from metalearn.sweeps.runs import FinishedRun, validation
from metalearn.sweeps.table import setting

_COLUMNS = 3
_NAMED = 12  # rows that a legend has room for


def curves(arranged: Arranged) -> Figure | None:
    """The mean of the seeds' validation at each step, between the lowest and the highest."""
    figure, panels = _panels(arranged.conditions)
    for number, row in enumerate(arranged.rows):
        for axes, condition in zip(panels, arranged.conditions, strict=True):
            each = [validation(run.folder) for run in row.cells.get(condition, [])]
            steps = sorted(set.intersection(*map(set, each))) if each else []
            if not steps:
                continue
            values = np.array([[one[step] for step in steps] for one in each])
            axes.plot(steps, values.mean(0), "o-", ms=3, color=f"C{number % 10}", label=_label(row))
            axes.fill_between(
                steps, values.min(0), values.max(0), color=f"C{number % 10}", alpha=0.15, lw=0
            )
            axes.set_xlabel("meta-step")
            axes.set_ylabel(f"validation {arranged.measure}")
    return _with_legend(figure, panels)


def by_step(arranged: Arranged) -> Figure | None:
    """The mean of the seeds after each inner step, between the lowest and the highest."""
    figure, panels = _panels(arranged.conditions)
    name = f"{arranged.measure}_by_step"
    for number, row in enumerate(arranged.rows):
        for axes, condition in zip(panels, arranged.conditions, strict=True):
            each = [run.result.get(name) or [] for run in row.cells.get(condition, [])]
            if len({len(one) for one in each}) != 1 or len(each[0]) < 2:
                continue
            values = np.array([[mean for mean, _ in one] for one in each])
            steps, color = range(values.shape[1]), f"C{number % 10}"
            axes.plot(steps, values.mean(0), "o-", ms=3, color=color, label=_label(row))
            axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("inner step")
            axes.set_ylabel(f"test {arranged.measure}")
    return _with_legend(figure, panels)


def by_shots(arranged: Arranged, found: Sequence[dict[str, Scored]]) -> Figure | None:
    """Each row over the numbers of shots of one data set and number of ways, with intervals. found:
    the rows' cells in numbers."""
    tasks: dict[str, dict[int, str]] = {}
    for row in arranged.rows:
        for condition, runs in row.cells.items():
            told = runs[0].result
            ways = f" {told['ways']}-way" if told.get("ways") else ""
            if isinstance(told["shots"], int):
                tasks.setdefault(f"{told['dataset']}{ways}", {})[told["shots"]] = condition
    tasks = {name: dict(sorted(shots.items())) for name, shots in tasks.items() if len(shots) > 1}
    if not tasks:
        return None
    figure, panels = _panels(list(tasks))
    for number, (row, cells) in enumerate(zip(arranged.rows, found, strict=True)):
        for axes, shots in zip(panels, tasks.values(), strict=True):
            there = [(k, cells[c].estimate) for k, c in shots.items() if c in cells]
            if len(there) < 2:
                continue
            means = [estimate.mean for _, estimate in there]
            ends = [[e.mean - e.low for _, e in there], [e.high - e.mean for _, e in there]]
            looks: dict[str, Any] = {"color": f"C{number % 10}", "label": _label(row)}
            axes.errorbar([k for k, _ in there], means, ends, fmt="o-", ms=3, capsize=2, **looks)
            axes.set_xscale("log")
            axes.set_xticks(list(shots), [str(k) for k in shots])
            axes.minorticks_off()
            axes.set_xlabel("shots")
            axes.set_ylabel(f"test {arranged.measure}")
    return _with_legend(figure, panels)


def costs(arranged: Arranged) -> Figure | None:
    """Every run by its time and its memory."""
    figure, panels = _panels(("", ""))
    names = {"seconds of training": "seconds", "peak memory, MiB": "peak_memory_bytes"}
    for number, row in enumerate(arranged.rows):
        runs = [run for cell in row.cells.values() for run in cell]
        for axes, (name, key) in zip(panels, names.items(), strict=True):
            there = [run for run in runs if run.result.get(key)]
            scale = 2**20 if key == "peak_memory_bytes" else 1
            axes.scatter(
                [run.result[key] / scale for run in there], [_result(run) for run in there],
                color=f"C{number % 10}", label=_label(row), s=18,
            )  # fmt: skip
            axes.set_xlabel(name)
            axes.set_ylabel(f"test {arranged.measure}")
    return _with_legend(figure, panels)


def _result(run: FinishedRun) -> float:
    return float(run.result[run.measure])


def _label(row: Row) -> str:
    return " ".join(map(setting, row.settings.values()))


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel for each title; colours mean the same row in all of them."""
    columns = min(len(titles), _COLUMNS)
    lines = -(-len(titles) // columns)
    figure = Figure((4.2 * columns + 2.5, 3.4 * lines), layout="constrained")
    every = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in every[len(titles) :]:
        axes.set_axis_off()
    for axes, title in zip(every, titles, strict=False):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    return figure, every[: len(titles)]


def _with_legend(figure: Figure, panels: Sequence[Axes]) -> Figure | None:
    """None where nothing was drawn."""
    named = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if not named:
        return None
    shown = dict(list(named.items())[:_NAMED])
    legend = figure.legend(
        shown.values(), shown, loc="outside right upper", fontsize=8, frameon=False
    )
    if len(named) > _NAMED:
        legend.set_title(f"the first {_NAMED} of {len(named)}")
    return figure
