"""The race as figures, a table on the terminal, Markdown and JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.quartiles import Spread, spread
from metalearn.benchmarks.records import Record
from metalearn.runtime.files import encode_floats, write_atomic

OURS = "ours"
AS_RUN, SAME = ("tuned", "default"), ("tuned", "tuned")
"""Allocators of ours and of theirs: `metalearn train` tunes its own, peers leave it as it is."""


class Row(NamedTuple):
    """One framework in one cell. tasks: a second, median and quartiles over the repeats.
    compile: seconds. flops: a second. error: of the gradient, against float64."""

    cell: Cell
    framework: str
    allocator: str
    tasks: Spread
    memory: int | None
    compile: float
    flops: float
    error: float | None


def rows(records: Iterable[Record]) -> list[Row]:
    """Everything that was timed."""
    found = []
    for record in records:
        cell = Cell(**record["cell"])
        for worker in record["workers"].values():
            if worker["reason"] or not worker.get("seconds"):
                continue
            median, low, high = spread(worker["seconds"])
            name, tasks = (worker["framework"], worker["allocator"]), cell.tasks
            rates = Spread(tasks / median, tasks / high, tasks / low)
            compiling, flops = max(worker["first"] - median, 0.0), record["flops"] / median
            error = worker["gradient_error"]
            found.append(Row(cell, *name, rates, worker["memory"], compiling, flops, error))
    return found


def left_out(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    """(cell, framework or "all", reason) of what was not timed."""
    found = []
    for record in records:
        name = Cell(**record["cell"]).name
        if record["reason"]:
            found.append((name, "all", record["reason"]))
        reasons = {job: w["reason"] for job, w in record["workers"].items() if w["reason"]}
        found += [(name, job, reason) for job, reason in reasons.items()]
    return found


def ratios(rows: Sequence[Row], ours: str, allocators: tuple[str, str]) -> dict[Cell, dict]:
    """Per cell, how many times as many tasks a second `ours` does as each other framework.

    allocators: of ours and of theirs.
    """
    mine = {r.cell: r for r in rows if (r.framework, r.allocator) == (ours, allocators[0])}
    found: dict[Cell, dict[str, float]] = {cell: {} for cell in mine}
    for row in rows:
        if row.cell in mine and row.framework != ours and row.allocator == allocators[1]:
            found[row.cell][row.framework] = mine[row.cell].tasks.median / row.tasks.median
    return found


def compared(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Which allocators of ours and of theirs."""
    raced = {row.allocator for row in rows}
    return [(one, one) for one in raced] if len(raced) == 1 else [AS_RUN, SAME]


def table(rows: Sequence[Row]) -> Table:
    """A table for a terminal of 80 columns; the files hold more columns."""
    shown = Table(*SHORT, box=None, pad_edge=False)
    for column in shown.columns[2:]:
        column.justify = "right"
    shown_cell = None
    for row, (cell, *line) in zip(rows, _lines(rows), strict=True):
        if cell != shown_cell:
            shown.add_row(f"[bold]{cell}")
            shown_cell = cell
        framework, allocator, _, _, ratio, memory, compiling, _, error = line
        tasks = row.tasks
        spread = f"{(tasks.high - tasks.low) / 2 / tasks.median:.0%}"
        rate = f"{tasks.median:,.0f}" if tasks.median >= 1000 else f"{tasks.median:.3g}"
        shown.add_row(framework, allocator, rate, spread, ratio, memory, compiling, error)
    return shown


SHORT = ("", "allocator", "tasks/s", "±", "ours is", "peak MB", "compile s", "error")
HEAD = (
    "cell", "framework", "allocator", "tasks/s", "quartiles", "ours is", "peak MB", "compile s",
    "GFLOP/s", "error",
)  # fmt: skip


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    """What stands below `HEAD`."""
    same = {theirs: ratios(rows, OURS, (ours, theirs)) for ours, theirs in compared(rows)}
    body = []
    for row in rows:
        ratio = same[row.allocator].get(row.cell, {}).get(row.framework)
        told = "" if ratio is None else f"{ratio:.2f}x"
        memory = "" if row.memory is None else f"{row.memory / 1e6:.0f}"
        error = "" if row.error is None else f"{row.error:.0e}"
        rates = [f"{row.tasks.median:.3g}", f"{row.tasks.low:.3g} to {row.tasks.high:.3g}"]
        costs = [memory, f"{row.compile:.1f}", f"{row.flops / 1e9:.3g}", error]
        body.append([row.cell.name, row.framework, row.allocator, *rates, told, *costs])
    return body


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio_table(rows: Sequence[Row], ours: str = OURS) -> str:
    """How many times as fast `ours` is as each peer: as the peer's users run it, and with the
    same tuned allocator; or with the one that was raced."""
    tables = [ratios(rows, ours, allocators) for allocators in compared(rows)]
    peers = list(dict.fromkeys(r.framework for r in rows if not r.framework.startswith(OURS)))
    body = []
    for cell in tables[0]:
        found = [[t.get(cell, {}).get(peer) for t in tables] for peer in peers]
        told = (["-" if r is None else f"{r:.2f}" for r in both] for both in found)
        body.append([cell.name, *map(" / ".join, told)])
    return markdown_table(["cell", *peers], body)


def machine_lines(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The machine as Markdown."""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine["matmul"].items())
    return "\n".join(
        [
            f"- {machine['gpu'] or machine['cpu']}, {settings['threads']} thread(s) of "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB; "
            f"{', '.join(machine['flags'])}",
            f"- {machine['system']}, Python {machine['python']}, {versions}",
            f"- matrix product of 2048x2048, same threads, GFLOP/s: {rates}",
            f"- {settings['repeats']} repeats, the frameworks taking turns; medians and quartiles",
        ]
    )


NOTES = """5-way 1-shot, 15 queries a class; Conv-4-64 with max-pooling and transductive batch norm;
`mlp` is MAML's sinusoid network with 10 support points and 10 queries. One meta-step is the
second-order meta-gradient of T tasks after K inner steps. Every torch framework gets the same
module. Gradients are compared with a float64 loop before anything is timed, on tasks
where no ReLU or maximum that rounding flips moves the gradient by more than 2.5e-4, or on the
steadiest of eight draws.

`peak MB` is what one meta-step added to the process's resident set (on CUDA: to the allocator's
bytes). `compile s` is the first meta-step less a later one. GFLOP/s counts the products and
convolutions of the plain loop, whatever a framework really computes. `allocator` tuned: freed
memory stays in the process (mallopt), for every framework alike."""


def markdown(records: Sequence[Record], plot: str) -> str:
    """The whole report on speed."""
    found = rows(records)
    parts = ["# Speed of the meta-gradient"]
    if records:
        parts.append(machine_lines(records[-1]["machine"], records[-1]["settings"]))
    parts.append(NOTES)
    if found:
        parts += [f"![ours over the best peer]({plot})", "## How many times as fast ours is"]
        if len(compared(found)) == 2:
            parts += ["Peers as their users run them / with the same tuned allocator as ours."]
        names = dict.fromkeys(r.framework for r in found)
        for ours in (n for n in names if n.startswith(OURS)):
            parts += [f"`{ours}`:", ratio_table(found, ours)]
        parts += ["## Everything that was timed", markdown_table(HEAD, _lines(found))]
    if missing := left_out(records):
        parts += ["## Not timed", markdown_table(("cell", "framework", "reason"), missing)]
    return "\n\n".join(parts) + "\n"


def write(records: Sequence[Record], folder: Path) -> None:
    """`speed.json`, `speed.md` and, where anything was timed, `speed.png`."""
    from metalearn.benchmarks.plots import plot_speed

    found = rows(records)
    write_atomic(folder / "speed.json", json.dumps(encode_floats(list(records)), indent=1) + "\n")
    write_atomic(folder / "speed.md", markdown(records, "speed.png"))
    if found:
        plot_speed(found, folder / "speed.png")
