"""`metalearn bench engine`: the meta-gradient beside other packages' engines."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metalearn.benchmarks import cells as grid
from metalearn.benchmarks import frameworks, memory, report, rounding
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.fit import fits
from metalearn.benchmarks.machine import processors
from metalearn.benchmarks.plots import plot_memory
from metalearn.benchmarks.records import Record, read
from metalearn.benchmarks.speed import Settings, race
from metalearn.commands.arguments import check_choice, read_options
from metalearn.commands.bench_episodes import bench_episodes
from metalearn.errors import UsageError
from metalearn.runtime.device import torch_device
from metalearn.runtime.files import write_atomic

PARTS = ("speed", "errors", "memory", "fit")
ALLOCATORS = {"default": ("default",), "tuned": ("tuned",), "both": ("default", "tuned")}


@dataclass(frozen=True)
class Options:
    """What stands on the command line."""

    cells: str = "quick"
    part: str = "speed"
    threads: int = 0
    repeats: int = 5
    out: str = "experiments/engine"
    frameworks: str = ""
    allocator: str = "both"
    device: str = "auto"
    budget: float = 600.0


def options(arguments: Sequence[str]) -> Options:
    """From `name=value`. Raises UsageError for a name or a value that is not known."""
    chosen = read_options(arguments, Options())
    check_choice("part", chosen.part, (*PARTS, "all"))
    check_choice("allocator", chosen.allocator, tuple(ALLOCATORS))
    if chosen.threads > processors():
        raise UsageError(
            f"threads={chosen.threads}, but this process has {processors()} processors"
        )
    return chosen


def bench(arguments: list[str], console: Console) -> None:
    """`metalearn bench engine|episodes [name=value ...]`. Raises UsageError."""
    what, *rest = arguments or [""]
    if what == "episodes":
        bench_episodes(rest, console)
        return
    if what != "engine":
        raise UsageError(
            f"no benchmark {what!r}; use metalearn bench engine or episodes [name=value ...]"
        )
    chosen = options(rest)
    cells = grid.parse(chosen.cells)
    device, folder = torch_device(chosen.device).type, Path(chosen.out)
    # The quick benchmark leaves out the variant that takes a minute to compile.
    usual = [n for n in frameworks.default(device) if chosen.cells != "quick" or n != "jax-vmap"]
    names = frameworks.parse(chosen.frameworks or ",".join(usual))
    settings = Settings(
        names,
        ALLOCATORS[chosen.allocator],
        device,
        chosen.threads or processors(),
        chosen.repeats,
        chosen.budget,
    )
    parts = PARTS if chosen.part == "all" else (chosen.part,)
    if "speed" in parts:
        records = race(cells, settings, folder, lambda line: _say(console, line))
        report.write(_of(read(folder / "cells.jsonl"), settings), folder)
        _show_speed(records, console)
    if "errors" in parts:
        found = rounding.by_steps(device=device)
        _keep(folder, "errors", found, ERRORS_HEAD, _error_line, console)
    if "memory" in parts:
        found = memory.by_steps(device=device)
        _keep(folder, "memory", found, MEMORY_HEAD, _memory_line, console)
        plot_memory(found, folder / "memory.png")
    if "fit" in parts:
        rows = report.rows(_of(read(folder / "cells.jsonl"), settings))
        found = [fit._asdict() for fit in fits(rows)]
        if not found:
            console.print("fit: needs a network with four cells or more of two K and two T")
        else:
            _keep(folder, "fit", found, FIT_HEAD, _fit_line, console)
    _say(console, f"written to {folder}")


def _of(records: Sequence[Record], settings: Settings) -> list[Record]:
    """The latest record of every cell on the same device with as many threads, in the grid's
    order."""
    same = {"device": settings.device, "threads": settings.threads}
    latest = {
        Cell(**record["cell"]): record
        for record in records
        if all(record["settings"][name] == value for name, value in same.items())
    }
    order = sorted(latest, key=lambda cell: (cell.model, cell.steps, cell.tasks))
    return [latest[cell] for cell in order]


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _show_speed(records: Sequence[Record], console: Console) -> None:
    console.print(report.table(report.rows(records)))
    for cell, framework, reason in report.left_out(records):
        _say(console, f"not timed: {cell}, {framework}: {reason}")


ERRORS_HEAD = ("network", "K", "strategy", "cosine", "relative error", "")
MEMORY_HEAD = (
    "network", "K", "strategy", "peak MB", "of which K copies of the weights", "rest MB",
    "s a meta-step",
)  # fmt: skip
FIT_HEAD = (
    "network", "framework", "allocator", "ms fixed", "ms a task", "ms a step and task", "R²",
    "cells",
)  # fmt: skip


def _error_line(r: Mapping[str, Any]) -> list[str]:
    told = ["", ""] if r["error"] is None else [f"{r['cosine']:.5f}", f"{r['error']:.1e}"]
    return [r["model"], str(r["steps"]), r["strategy"], *told, r["reason"]]


def _memory_line(r: Mapping[str, Any]) -> list[str]:
    copies = ["", ""]
    if r["strategy"] == "adjoint":  # the others keep theirs in the graph, or none
        copies = [f"{size / 1e6:.1f}" for size in (r["fast_copies"], r["peak"] - r["fast_copies"])]
    line = [r["model"], str(r["steps"]), r["strategy"], f"{r['peak'] / 1e6:.1f}"]
    return [*line, *copies, f"{r['seconds']:.2f}"]


def _fit_line(r: Mapping[str, Any]) -> list[str]:
    names = [r["model"], r["framework"], r["allocator"]]
    costs = [f"{r[name]:.3g}" for name in ("fixed", "task", "step")]
    return [*names, *costs, f"{r['r2']:.4f}", str(r["cells"])]


def _keep(
    folder: Path,
    name: str,
    found: Sequence[Mapping[str, Any]],
    head: Sequence[str],
    line: Callable[[Mapping[str, Any]], list[str]],
    console: Console,
) -> None:
    """Print a table, and write it as JSON and Markdown."""
    body = [line(entry) for entry in found]
    shown = Table(*head, box=None, pad_edge=False)
    for row in body:
        shown.add_row(*row)
    console.print(shown)
    write_atomic(folder / f"{name}.json", json.dumps(list(found), indent=1) + "\n")
    write_atomic(folder / f"{name}.md", report.markdown_table(head, body) + "\n")
