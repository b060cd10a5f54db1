"""`metalearn bench`: the meta-gradient, or the making of episodes, beside other packages."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from metalearn.benchmarks import cells as grid
from metalearn.benchmarks import evaluation, frameworks, memory, metric, report, rounding
from metalearn.benchmarks.episodes import Shape, measure, share
from metalearn.benchmarks.fit import fits
from metalearn.benchmarks.machine import processors
from metalearn.benchmarks.plots import plot_memory
from metalearn.benchmarks.records import read
from metalearn.benchmarks.speed import Settings, race
from metalearn.benchmarks.tables import (
    ERRORS,
    EVALUATED,
    FIT,
    MEMORY,
    METRIC,
    OFF,
    keep,
    keep_episodes,
    keep_turns,
    latest,
)
from metalearn.commands.building.arguments import check_choice
from metalearn.commands.building.config import compose
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.words import read_options
from metalearn.data import ImageDataset
from metalearn.errors import UsageError
from metalearn.runtime.device import torch_device
from metalearn.runtime.memory import keep_freed_memory
from metalearn.training.stage import teller

PARTS = ("speed", "errors", "memory", "fit")
ALLOCATORS = {"default": ("default",), "tuned": ("tuned",), "both": ("default", "tuned")}


@dataclass(frozen=True)
class EngineOptions:
    """What stands on the command line of `bench engine`."""

    cells: str = "quick"
    part: str = "speed"
    threads: int = 0
    repeats: int = 5
    out: str = "experiments/engine"
    frameworks: str = ""
    allocator: str = "both"
    device: str = "auto"
    budget: float = 600.0


@dataclass(frozen=True)
class EpisodeOptions:
    """What stands on the command line of `bench episodes`. seconds: of one repeat."""

    datasets: str = "omniglot,cifar_fs"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    seconds: float = 1.0
    repeats: int = 5
    threads: int = 0
    out: str = "experiments/episodes"


@dataclass(frozen=True)
class EvaluateOptions:
    """What stands on the command line of `bench evaluate`."""

    cells: str = "conv4-28,conv4-32/K=1,5,10/T=32"
    threads: int = 0
    repeats: int = 7
    out: str = "experiments/evaluation"


@dataclass(frozen=True)
class MetricOptions:
    """What stands on the command line of `bench metric`."""

    cells: str = "conv4-28,conv4-32/T=8"
    methods: str = "protonet,r2d2"
    threads: int = 0
    repeats: int = 7
    out: str = "experiments/engine"


def main(arguments: list[str], console: Console) -> None:
    """`metalearn bench engine|evaluate|metric|episodes [name=value ...]`."""
    what, *rest = arguments or [""]
    benchmarks = {"engine": bench_engine, "evaluate": bench_evaluate}
    benchmarks |= {"metric": bench_metric, "episodes": bench_episodes}
    if what not in benchmarks:
        raise UsageError(f"no benchmark {what!r}; use metalearn bench {', '.join(benchmarks)}")
    teller(console)(f"written to {benchmarks[what](rest, console)}")


def bench_engine(arguments: Sequence[str], console: Console) -> Path:
    """The meta-gradient of each cell by each framework; the folder of the results."""
    chosen = read_options(arguments, EngineOptions(), "bench engine")
    check_choice("part", chosen.part, (*PARTS, "all"))
    check_choice("allocator", chosen.allocator, tuple(ALLOCATORS))
    if chosen.threads > processors():
        raise UsageError(f"threads={chosen.threads}, but this process has {processors()} only")
    cells = grid.parse(chosen.cells)
    device, folder = torch_device(chosen.device).type, Path(chosen.out)
    # The quick benchmark leaves out the variant that takes a minute to compile.
    usual = [n for n in frameworks.default(device) if chosen.cells != "quick" or n != "jax-vmap"]
    raced = frameworks.parse(chosen.frameworks or ",".join(usual))
    threads, allocators = chosen.threads or processors(), ALLOCATORS[chosen.allocator]
    settings = Settings(raced, allocators, device, threads, chosen.repeats, chosen.budget)
    parts = PARTS if chosen.part == "all" else (chosen.part,)
    if "speed" in parts:
        records = race(cells, settings, folder, say := teller(console))
        report.write(latest(read(folder / "cells.jsonl"), settings), folder)
        console.print(report.table(report.rows(records)))
        for cell, framework, reason in report.left_out(records):
            say(f"not timed: {cell}, {framework}: {reason}")
    if "errors" in parts:
        keep(folder, "errors", ERRORS, rounding.by_steps(device=device), console)
        keep(folder, "off_tasks", OFF, rounding.off_tasks(device=device), console)
    if "memory" in parts:
        found = memory.by_steps(device=device)
        keep(folder, "memory", MEMORY, found, console)
        plot_memory(found, folder / "memory.png")
    if "fit" in parts:
        rows = report.rows(latest(read(folder / "cells.jsonl"), settings))
        found = [fit._asdict() for fit in fits(rows)]
        if found:
            keep(folder, "fit", FIT, found, console)
        else:
            console.print("fit: needs a network with four cells or more of two K and two T")
    return folder


def bench_evaluate(arguments: Sequence[str], console: Console) -> Path:
    """How fast tasks of each cell are evaluated; the folder of the results."""
    chosen = read_options(arguments, EvaluateOptions(), "bench evaluate")
    cells, path = _images(chosen.cells), Path(chosen.out) / "speed"
    with _alone(chosen.threads) as load:
        rows = [row for cell in cells for row in evaluation.measure(cell, chosen.repeats)]
    title = "Speed of an evaluation: 5-way 1-shot, 75 queries, after K inner steps of first order"
    keep_turns(path, title, EVALUATED, rows, load, console)
    return Path(chosen.out)


def bench_metric(arguments: Sequence[str], console: Console) -> Path:
    """How fast a meta-step of methods without inner steps is; the folder of the results."""
    chosen = read_options(arguments, MetricOptions(), "bench metric")
    methods = chosen.methods.split(",")
    for method in methods:
        check_choice("methods", method, metric.METHODS)
    cells, path = _images(f"{chosen.cells}/K=1"), Path(chosen.out) / "metric"
    with _alone(chosen.threads) as load:
        rows = [
            row
            for cell in cells
            for method in methods
            for row in metric.measure(cell, method, chosen.repeats)
        ]
    title = "Speed of a meta-step without inner steps: 5-way 1-shot, 75 queries"
    keep_turns(path, title, METRIC, rows, load, console)
    return Path(chosen.out)


def _images(text: str) -> tuple[grid.Cell, ...]:
    """The cells, all of them networks that classify images."""
    cells = grid.parse(text)
    if any(cell.model == "mlp" for cell in cells):
        raise UsageError("cells: mlp regresses, and has no accuracy; use the other networks")
    return cells


@contextmanager
def _alone(threads: int) -> Iterator[list[float]]:
    """Inside, torch has so many threads, 0 for all; the machine's load before, and then after."""
    load = [os.getloadavg()[0]]
    torch.set_num_threads(threads or processors())
    keep_freed_memory()
    yield load
    load.append(os.getloadavg()[0])


def bench_episodes(arguments: Sequence[str], console: Console) -> Path:
    """How fast episodes of each data set are made; the folder of the results."""
    chosen = read_options(arguments, EpisodeOptions(), "bench episodes")
    torch.set_num_threads(chosen.threads or processors())
    keep_freed_memory()
    shape = Shape(chosen.ways, chosen.shots, chosen.queries)
    rows, shares = [], []
    for name in chosen.datasets.split(","):
        dataset = read_data(compose([f"dataset={name}"])).dataset
        if not isinstance(dataset, ImageDataset):
            raise UsageError(f"datasets={name} has no images")
        rows += measure(dataset, shape, chosen.seconds, chosen.repeats)
        shares.append(share(dataset, shape))
    keep_episodes(Path(chosen.out), shape, chosen.repeats, rows, shares, console)
    return Path(chosen.out)
