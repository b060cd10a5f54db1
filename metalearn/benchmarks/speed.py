"""The race: every framework in a process of its own, gated on its gradient, timed in turns."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.distance import distance
from metalearn.benchmarks.frameworks import framework
from metalearn.benchmarks.frameworks.plain import flops
from metalearn.benchmarks.machine import memory_available
from metalearn.benchmarks.process import Job, Process, WorkerError
from metalearn.benchmarks.records import Record, append, done, hopeless, read
from metalearn.errors import UsageError

TOLERANCE = 1e-3
"""Relative error that every float32 gradient is allowed."""
MAX_ERROR = 0.2
"""The largest error that is ever allowed, where float32 itself is far from float64 because ReLU
and max-pooling flip. A first-order gradient is off by 0.5 or more."""
STEADY, DRAWS = 2.5e-4, 8
"""How far a float32 loop's gradient may be from float64 where the inputs are changed by some
roundings; else other tasks are drawn, so many times. A flip would hide a mistake, or look like one.
"""
LOW_PRECISION = 0.5
STARTING = 300.0
"""Seconds that a process may take to import its framework."""
CALLS_FOR = 0.3
"""Seconds that one timed repeat should take at least."""
UTILISATION, OVERHEAD = 0.15, 0.004
"""To guess the time of a meta-step: share of the matrix-product rate, seconds a task and step."""


@dataclass(frozen=True)
class Settings:
    """How the race is run. budget: seconds that one cell may take, all frameworks together."""

    frameworks: tuple[str, ...]
    allocators: tuple[str, ...] = ("default", "tuned")
    device: str = "cpu"
    threads: int = 2
    repeats: int = 5
    budget: float = 600.0

    @property
    def jobs(self) -> tuple[Job, ...]:
        """A worker each; ours with the allocator that it tunes itself wherever that is measured."""
        jobs = [Job(f, a) for a in self.allocators for f in self.frameworks]
        untuned = self.allocators[:1] == ("default",) and len(self.allocators) > 1
        jobs = [j for j in jobs if not (untuned and j.ours and j.allocator == "default")]
        return tuple(sorted(jobs, key=lambda job: not job.ours))

    def saved(self) -> dict[str, Any]:
        """As JSON gives it back."""
        values = asdict(self)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


def race(
    cells: Sequence[Cell], settings: Settings, folder: Path, tell: Callable[[str], None]
) -> list[Record]:
    """Measure the cells that `folder/cells.jsonl` does not hold yet; all records of these cells.

    tell: called with one line a cell.
    """
    path, saved = folder / "cells.jsonl", settings.saved()
    left = [cell for cell in cells if not done(read(path), cell, saved)]
    if left:
        logs, how = folder / "logs", (settings.device, settings.threads)
        machine = Process(Job("plain"), *how, logs / "plain.log")
        processes = {job: Process(job, *how, logs / f"{job.name}.log") for job in settings.jobs}
        try:
            for process in (machine, *processes.values()):  # all at once: it is mostly imports
                process.begin()
            for process in processes.values():
                with contextlib.suppress(WorkerError):  # reported cell by cell
                    process.hello(STARTING)
            described = machine.ask("machine", STARTING)
            for number, cell in enumerate(left, 1):
                tell(f"{number}/{len(left)} {cell.name}")
                record = measure(cell, settings, described, machine, processes, read(path))
                append(path, record)
                tell(f"    {outcome(record)}")
        finally:
            for process in (machine, *processes.values()):
                process.close()
    names = {cell.name for cell in cells}
    mine = [r for r in read(path) if r["settings"] == saved]
    return [r for r in mine if Cell(**r["cell"]).name in names]


def outcome(record: Record) -> str:
    """One line on a cell."""
    if record["status"] != "measured":
        return f"not measured: {record['reason']}"
    left_out = [f"{n}: {w['reason']}" for n, w in record["workers"].items() if w["reason"]]
    timed = sum(not w["reason"] for w in record["workers"].values())
    return "; ".join([f"{timed} timed", *left_out])


def measure(
    cell: Cell,
    settings: Settings,
    machine: Mapping[str, Any],
    reference: Process,
    processes: Mapping[Job, Process],
    before: Sequence[Record],
) -> Record:
    """The record of one cell."""
    record: Record = {"cell": asdict(cell), "settings": settings.saved(), "machine": dict(machine)}
    record |= {"status": "not measured", "reason": "", "workers": {}}
    try:
        record["flops"] = flops(cell)
    except UsageError as error:
        return {**record, "reason": str(error)}
    guess = guessed_seconds(cell, record["flops"], machine["matmul"]["float32"])
    total = guess * len(processes) * (settings.repeats + 4)
    if total > settings.budget:
        why = f"it would take about {total:.0f} s; budget={settings.budget:.0f}"
        return {**record, "reason": why}
    with TemporaryDirectory() as folder:
        exact = Path(folder, "reference.safetensors")
        try:
            cell, rounding = steady_cell(cell, settings, reference, exact)
        except WorkerError as error:
            return {**record, "reason": f"reference: {error}"}
        record |= {"cell": asdict(cell), **rounding}
        want = load_file(exact)
        for job, process in processes.items():
            entry = record["workers"][job.name] = asdict(job) | {"reason": ""}
            if why := hopeless(before, cell, settings.saved(), job.name):
                entry["reason"] = why
                continue
            gradient = Path(folder, "gradient.safetensors")
            try:
                patience = settings.budget / 2
                entry |= process.hello(patience)
                entry |= process.ask("prepare", patience, cell=asdict(cell), path=str(gradient))
            except WorkerError as error:
                entry["reason"] = str(error)
                if "took longer" in str(error) or "memory" in str(error).lower():
                    entry["too_large"] = str(error)
                continue
            entry |= gate(load_file(gradient), want, job.framework, rounding["float32_error"])
    timed = {j: p for j, p in processes.items() if not record["workers"][j.name]["reason"]}
    _time(record, timed, settings)
    for job, process in processes.items():
        # JAX's allocator tells the peak since its process began: a new one for every cell.
        if settings.device == "cuda" and job.framework.startswith("jax"):
            process.close()
    return {**record, "status": "measured"}


def steady_cell(
    cell: Cell, settings: Settings, reference: Process, path: Path
) -> tuple[Cell, dict[str, float]]:
    """`cell` with the first steady draw of its tasks, or the steadiest of several; the float64
    meta-gradient there, in `path`, and how far float32 is from it."""

    def ask(draw: int) -> tuple[Cell, dict[str, float]]:
        other = replace(cell, draw=draw)
        command = {"cell": asdict(other), "path": str(path), "steady": STEADY}
        return other, reference.ask("reference", settings.budget, **command)

    moved: dict[int, float] = {}
    for draw in range(DRAWS):
        other, rounding = ask(draw)
        moved[draw] = rounding["rounding_error"]
        if moved[draw] <= STEADY:
            return other, rounding
    return ask(min(moved, key=moved.__getitem__))


def guessed_seconds(cell: Cell, flops: int, rate: float) -> float:
    """What one meta-step may take, before anything has run."""
    return flops / (UTILISATION * rate) + OVERHEAD * cell.tasks * (cell.steps + 1)


def gate(got: Mapping, want: Mapping, name: str, float32_error: float) -> dict[str, Any]:
    """The error and cosine of a gradient, and why it is not timed where it disagrees.

    A float32 gradient may be ten times as far from float64 as a plain torch loop in float32 is.
    """
    allowed = min(max(TOLERANCE, 10 * float32_error), MAX_ERROR)
    if framework(name).low_precision:
        allowed = LOW_PRECISION
    try:
        error, cosine = distance(got, want)
    except ValueError as why:
        return {"gradient_error": None, "cosine": None, "reason": f"wrong gradient: {why}"}
    # NaN compares as wrong.
    reason = "" if error <= allowed else f"wrong gradient: error {error:.1e}, {allowed:.1e} allowed"
    if not math.isfinite(error):
        return {"gradient_error": None, "cosine": None, "reason": reason}
    return {"gradient_error": error, "cosine": cosine, "allowed": allowed, "reason": reason}


def _time(record: Record, processes: Mapping[Job, Process], settings: Settings) -> None:
    """Fill in `seconds` a meta-step, a value a repeat, the frameworks taking turns."""
    entries = record["workers"]
    needs = sum(entries[job.name]["memory"] or 0 for job in processes)
    crowded = settings.device == "cpu" and needs > memory_available() / 2
    for job in processes:
        entries[job.name]["seconds"] = []
    order = deque(processes)
    for _ in range(settings.repeats):
        for job in order:
            entry, process = entries[job.name], processes[job]
            if entry["reason"]:
                continue
            calls = max(1, math.ceil(CALLS_FOR / entry["steady"]))
            try:
                if crowded:
                    process.ask("time", settings.budget, calls=1)
                took = process.ask("time", settings.budget, calls=calls)["seconds"]
                entry["seconds"].append(took / calls)
                if crowded:
                    process.ask("rest", settings.budget)
            except WorkerError as error:
                entry["reason"] = f"while timed: {error}"
        order.rotate(-1)
