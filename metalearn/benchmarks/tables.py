"""The tables of a benchmark: on the terminal, as JSON and as Markdown."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from metalearn.benchmarks import machine
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.episodes import Shape
from metalearn.benchmarks.quartiles import spread
from metalearn.benchmarks.records import Record
from metalearn.benchmarks.report import markdown_table
from metalearn.benchmarks.speed import Settings
from metalearn.runtime.files import write_atomic
from metalearn.training.stage import teller

Row = Mapping[str, Any]


class Layout(NamedTuple):
    """The heads of a table's columns, and what stands in them for one entry."""

    head: Sequence[str]
    line: Callable[[Row], list[str]]


def _errors(r: Row) -> list[str]:
    told = ["", ""] if r["error"] is None else [f"{r['cosine']:.5f}", f"{r['error']:.1e}"]
    return [r["model"], str(r["steps"]), r["strategy"], *told, r["reason"]]


def _off(r: Row) -> list[str]:
    numbers = [str(r["steps"]), r["precision"], f"{r['off']} of {r['tasks']}"]
    return [r["model"], *numbers, f"{r['median']:.1e}", f"{r['largest']:.1e}"]


def _memory(r: Row) -> list[str]:
    copies = ["", ""]
    if r["strategy"] == "adjoint":  # the others keep theirs in the graph, or none
        copies = [f"{size / 1e6:.1f}" for size in (r["fast_copies"], r["peak"] - r["fast_copies"])]
    line = [r["model"], str(r["steps"]), r["strategy"], f"{r['peak'] / 1e6:.1f}"]
    return [*line, *copies, f"{r['seconds']:.2f}"]


def _fit(r: Row) -> list[str]:
    names = [r["model"], r["framework"], r["allocator"]]
    costs = [f"{r[name]:.3g}" for name in ("fixed", "task", "step")]
    return [*names, *costs, f"{r['r2']:.4f}", str(r["cells"])]


def _makers(r: Row) -> list[str]:
    rate = spread(r["episodes_per_second"])
    told = "" if r["maker"] == "ours" else f"{r['ours_is']:.3g}x"
    quartiles = f"{rate.low:.4g} to {rate.high:.4g}"
    return [r["dataset"], r["maker"], f"{rate.median:.4g}", quartiles, told]


def _turns(r: Row) -> list[str]:
    took, ratio = spread([1e3 * s for s in r["seconds"]]), spread(r["ours_is"])
    told = f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
    quartiles = f"{took.low:.3g} to {took.high:.3g}"
    names = [r["cell"], r["by"], f"{took.median:.3g}", quartiles]
    return [*names, "" if r["by"] == "ours" else told]


def _metric(r: Row) -> list[str]:
    cosine = "" if r["cosine"] is None else f"{r['cosine']:.5f}"
    return [*_turns(r), r["plan"], cosine]


ERRORS = Layout(("network", "K", "strategy", "cosine", "relative error", ""), _errors)
OFF = Layout(("network", "K", "precision", "off by 5%", "median error", "largest"), _off)
_COPIES = "of which K copies of the weights"
MEMORY = Layout(
    ("network", "K", "strategy", "peak MB", _COPIES, "rest MB", "s a meta-step"), _memory
)
_COSTS = ("ms fixed", "ms a task", "ms a step and task")
FIT = Layout(("network", "framework", "allocator", *_COSTS, "R²", "cells"), _fit)
_TURNS = ("tasks", "by", "ms a task", "quartiles", "ours is")
EVALUATED = Layout(_TURNS, _turns)
METRIC = Layout((*_TURNS, "batching", "cosine"), _metric)
MAKERS = Layout(("data set", "made by", "episodes/s", "quartiles", "ours is"), _makers)


def shown(layout: Layout, found: Sequence[Row], console: Console) -> str:
    """Print a table; returns it in Markdown."""
    body = [layout.line(entry) for entry in found]
    table = Table(*layout.head, box=None, pad_edge=False)
    for row in body:
        table.add_row(*row)
    console.print(table)
    return markdown_table(layout.head, body)


def keep(folder: Path, name: str, layout: Layout, found: Sequence[Row], console: Console) -> None:
    """Print a table, and write it as JSON and Markdown."""
    page = shown(layout, found, console)
    write_atomic(folder / f"{name}.json", json.dumps(list(found), indent=1) + "\n")
    write_atomic(folder / f"{name}.md", page + "\n")


def latest(records: Sequence[Record], settings: Settings) -> list[Record]:
    """The latest record of every cell on the same device with as many threads, in the grid's
    order."""
    same = {"device": settings.device, "threads": settings.threads}
    found = {
        Cell(**record["cell"]): record
        for record in records
        if all(record["settings"][name] == value for name, value in same.items())
    }
    order = sorted(found, key=lambda cell: (cell.model, cell.steps, cell.tasks))
    return [found[cell] for cell in order]


def _where(about: Mapping[str, Any], *packages: str) -> str:
    """The processor, its threads, and the versions of `packages`."""
    versions = ", ".join(f"{name} {machine.version(name)}" for name in packages)
    threads = torch.get_num_threads()
    return f"{about['cpu']}, {threads} thread(s) of {about['cores']} cores, {versions}"


def keep_turns(
    path: Path,
    title: str,
    layout: Layout,
    rows: Sequence[Row],
    load: Sequence[float],
    console: Console,
) -> None:
    """Print and write, as Markdown and JSON, what was timed in turns. path: without an ending.
    load: of the machine, before and after."""
    page = shown(layout, rows, console)
    about, threads = machine.describe("cpu"), torch.get_num_threads()
    head = (
        f"{_where(about, 'torch', 'learn2learn', 'easyfsl')}; load {load[0]:.1f} before "
        f"and {load[1]:.1f} after; medians and quartiles of {len(rows[0]['seconds'])} turns, "
        "ratios within each turn; without the time to compile"
    )
    write_atomic(path.with_suffix(".md"), f"# {title}\n\n{head}\n\n{page}\n")
    saved = {"machine": about, "threads": threads, "load": list(load), "rows": rows}
    write_atomic(path.with_suffix(".json"), json.dumps(saved, indent=1) + "\n")


def keep_episodes(
    folder: Path,
    shape: Shape,
    repeats: int,
    rows: Sequence[Row],
    shares: Sequence[Row],
    console: Console,
) -> None:
    """Print and write how fast episodes of `shape` are made, and what share of a step that is."""
    page = shown(MAKERS, rows, console)
    told = [
        f"{s['dataset']}: making {s['tasks']} augmented episodes takes {s['making'] * 1e3:.2f} ms, "
        f"a MAML step on them (Conv-4-64, K=1) {s['step'] * 1e3:.1f} ms: "
        f"{s['share']:.1%} of both together; made by a thread meanwhile, the engine waits "
        f"{s['waiting'] * 1e3:.2f} ms, and its step takes {s['step_beside'] * 1e3:.1f} ms"
        for s in shares
    ]
    for line in told:
        teller(console)(line)
    about, threads = machine.describe("cpu"), torch.get_num_threads()
    head = (
        f"{_where(about, 'torch', 'learn2learn')}; "
        f"{shape.ways}-way {shape.shots}-shot, {shape.queries} queries a class; medians of "
        f"{repeats} repeats in turns; the images in memory for all"
    )
    page = "\n\n".join([head, page, "\n".join(f"- {line}" for line in told)])
    write_atomic(folder / "speed.md", f"# Speed of making episodes\n\n{page}\n")
    saved = {"machine": about, "threads": threads, "makers": rows, "shares": shares}
    write_atomic(folder / "speed.json", json.dumps(saved, indent=1) + "\n")
