"""Plots of the benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, ScalarFormatter

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.quartiles import Spread
from metalearn.benchmarks.report import OURS, Row, compared
from metalearn.evaluation.plots import _figure, _save, _style

_COLORS = ("#3b6fb6", "#d1602f", "#1d7a46", "#8c5bb0", "#b8901f")
_OTHERS = ("#a83a5b", "#2b9c9c", "#444444")
_DASHES = ["-", "--", ":", "-."]


def plot_speed(rows: Sequence[Row], path: Path) -> None:
    """How many times as many tasks a second ours does as the best peer, as its users run it: a
    panel a network over T, a line for each K, and a dash for each other way of ours. Whiskers: from
    our lower quartile over the peer's upper one to the opposite."""
    ways = [name for name in dict.fromkeys(r.framework for r in rows) if name.startswith(OURS)]
    found = {way: speedups(rows, way) for way in ways}
    cells = [c for c in dict.fromkeys(r.cell for r in rows) if any(c in s for s in found.values())]
    models = list(dict.fromkeys(cell.model for cell in cells))
    steps = sorted({cell.steps for cell in cells})
    colors = dict(zip(steps, (*_COLORS, *_OTHERS) * len(steps), strict=False))
    columns = min(3, max(len(models), 1))
    lines = -(-len(models) // columns)
    figure = _figure(3.4 * columns, 0.7 + 2.4 * lines, layout="constrained")
    for number, model in enumerate(models, 1):
        axes = figure.add_subplot(lines, columns, number)
        _style(axes)
        own = [cell for cell in cells if cell.model == model]
        counts = sorted({cell.tasks for cell in own})
        for way, dash in zip(ways, _DASHES * len(ways), strict=False):
            for k in steps:
                line = [(c, found[way][c]) for c in own if c.steps == k and c in found[way]]
                _line(axes, line, counts, colors[k], dash)
        axes.axhline(1, color="#777777", lw=1)
        axes.set_xticks(range(len(counts)), [f"T={count}" for count in counts], fontsize=8)
        axes.set_xlim(-0.4, len(counts) - 0.6)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}x")
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.8), max(high, 2.5))
        axes.set_title(model, loc="left", fontweight="bold", fontsize=10)
    handles = [Line2D([], [], color=colors[k], marker="o", ms=4, label=f"K={k}") for k in steps]
    handles += [
        Line2D([], [], color="#333333", ls=dash, label=way)
        for way, dash in zip(ways, _DASHES * len(ways), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    figure.suptitle("Tasks a second, ours over the best peer", x=0.01, ha="left", fontsize=11)
    _save(figure, path)


def speedups(rows: Sequence[Row], way: str) -> dict[Cell, Spread]:
    """By cell, `way` of ours over the fastest peer that ran there."""
    ours, theirs = compared(rows)[0]
    found = {}
    for row in rows:
        if (row.framework, row.allocator) != (way, ours):
            continue
        peers = [
            peer.tasks
            for peer in rows
            if peer.cell == row.cell
            and peer.allocator == theirs
            and not peer.framework.startswith(OURS)
        ]
        if peers:
            best, mine = max(peers, key=lambda tasks: tasks.median), row.tasks
            found[row.cell] = Spread(
                mine.median / best.median, mine.low / best.high, mine.high / best.low
            )
    return found


def _line(
    axes: Axes, line: Sequence[tuple[Cell, Spread]], counts: list[int], color: str, dash: str
) -> None:
    if not line:
        return
    places = [counts.index(cell.tasks) for cell, _ in line]
    median = np.array([found.median for _, found in line])
    ends = [[found.median - found.low for _, found in line]]
    ends.append([found.high - found.median for _, found in line])
    axes.errorbar(places, median, yerr=ends, color=color, ls=dash, lw=1.3, marker="o", ms=3.5,
                  elinewidth=0.8)  # fmt: skip


def plot_memory(records: Sequence[Mapping], path: Path) -> None:
    """Peak tensor memory over K, a line a strategy; dashed without the copies of fast weights."""
    figure = _figure(6.4, 4.2, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    names = list(dict.fromkeys(r["strategy"] for r in records))
    colors = dict(zip(names, (*_COLORS[:3], *_OTHERS), strict=False))
    for place, name in enumerate(names):
        mine = sorted((r for r in records if r["strategy"] == name), key=lambda r: r["steps"])
        steps = [r["steps"] for r in mine]
        axes.plot(steps, [r["peak"] / 1e6 for r in mine], color=colors[name], marker="o", ms=4,
                  lw=1.5 + 0.8 * (len(names) - place - 1), label=name)  # fmt: skip
        if name.startswith("adjoint"):
            rest = [(r["peak"] - r["fast_copies"]) / 1e6 for r in mine]
            axes.plot(steps, rest, color=colors[name], lw=1.2, ls="--",
                      label=f"{name}, less its K copies of the weights")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({r["steps"] for r in records})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    for tell in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        tell(ScalarFormatter())
    axes.set_xlabel("inner steps K")
    axes.set_ylabel("peak tensor memory, MB")
    axes.set_title(f"Memory of one task, {records[0]['model']}", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
