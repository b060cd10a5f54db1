"""Plots of the benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from metalearn.benchmarks.report import OURS, Row, compared
from metalearn.evaluation.plots import _figure, _save, _style

_COLORS = {
    "ours": "#3b6fb6",
    "ours-bf16": "#7fb2e5",
    "ours-graph": "#1f3f73",
    "ours-graph-bf16": "#5a86c4",
    "learn2learn": "#d1602f",
    "higher": "#1d7a46",
    "torchopt": "#8c5bb0",
    "jax-vmap": "#b8901f",
    "jax-loop": "#6d6d6d",
}
_OTHERS = ("#a83a5b", "#2b9c9c", "#444444")


def plot_speed(rows: Sequence[Row], path: Path) -> None:
    """Tasks a second of every framework as its users run it: a row of bars a cell, whiskers from
    quartile to quartile."""
    ours, theirs = compared(rows)[0]
    rows = [r for r in rows if r.allocator == (ours if r.framework.startswith(OURS) else theirs)]
    cells = list(dict.fromkeys(r.cell for r in rows))
    names = list(dict.fromkeys(r.framework for r in rows))
    bars = 0.1 + 0.17 * len(names)  # inches of a cell
    heights = {m: 0.7 + bars * sum(c.model == m for c in cells) for m in (c.model for c in cells)}
    columns = _columns(heights, min(2, len(heights)))
    tallest = max(sum(heights[m] for m in column) for column in columns)
    figure = _figure(5.2 * len(columns), min(0.9 + tallest, 60.0), layout="constrained")
    side_by_side = figure.add_gridspec(1, len(columns))
    colors = colors_of(names)
    for place, column in enumerate(columns):
        lines = [heights[m] for m in column]
        below = max(tallest - sum(lines), 0.01)
        grid = side_by_side[place].subgridspec(len(lines) + 1, 1, height_ratios=[*lines, below])
        for line, model in enumerate(column):
            axes = figure.add_subplot(grid[line])
            _style(axes)
            _bars(axes, [c for c in cells if c.model == model], names, rows, colors)
            axes.set_title(model, loc="left", fontweight="bold", fontsize=10)
            axes.set_xlabel("tasks a second")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    _save(figure, path)


def _columns(heights: Mapping[str, float], count: int) -> list[list[str]]:
    """The panels in so many columns, the tallest first, each below the shortest column so far."""
    columns: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(heights, key=heights.__getitem__, reverse=True):
        min(columns, key=lambda column: sum(heights[n] for n in column)).append(name)
    return columns


def _bars(axes: Axes, cells: list, names: list[str], rows: Sequence[Row], colors: Mapping) -> None:
    width = 0.8 / len(names)
    found = {(r.cell, r.framework): r.tasks for r in rows}
    for n, name in enumerate(names):
        places = np.arange(len(cells)) + (n - (len(names) - 1) / 2) * width
        tasks = [found.get((cell, name)) for cell in cells]
        median = np.array([np.nan if t is None else t.median for t in tasks])
        low = np.array([0.0 if t is None else t.median - t.low for t in tasks])
        high = np.array([0.0 if t is None else t.high - t.median for t in tasks])
        axes.barh(places, median, width * 0.9, color=colors[name], label=name)
        axes.errorbar(median, places, xerr=[low, high], fmt="none", ecolor="#222222", elinewidth=1)
        for place, value, over in zip(places, median, high, strict=True):
            if np.isfinite(value):
                told = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
                axes.annotate(told, (value + over, place), xytext=(3, 0), va="center",
                              textcoords="offset points", fontsize=7, color="#333333")  # fmt: skip
    axes.set_yticks(range(len(cells)), [f"K={c.steps}\nT={c.tasks}" for c in cells], fontsize=9)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.14)
    medians = [r.tasks.median for r in rows if r.cell in cells]
    if max(medians) > 20 * min(medians):  # the others would be a line of dots
        axes.set_xscale("log")
        axes.set_xlim(min(medians) / 3, max(medians) * 3)


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """A colour a framework, the same in every plot for those that are named here."""
    others = (color for _ in names for color in _OTHERS)
    return {name: _COLORS.get(name) or next(others) for name in names}


def plot_memory(records: Sequence[Mapping], path: Path) -> None:
    """Peak tensor memory over K, a line a strategy; dashed without the copies of fast weights."""
    figure = _figure(6.4, 4.2, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
    names = list(dict.fromkeys(r["strategy"] for r in records))
    colors = dict(zip(names, ("#3b6fb6", "#d1602f", "#1d7a46", *_OTHERS), strict=False))
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
