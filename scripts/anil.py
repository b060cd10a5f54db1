"""ANIL against learn2learn's: the head adapts, the body passes every image once, in both.

    uv run python -m scripts.anil [shots=1,5 steps=5 tasks=4 threads=2 repeats=7 out=...]

Conv-4-64 on 32x32 images, 5 ways, 15 queries a class, second order. As in learn2learn's example of
ANIL, its `MAML` holds the head alone and adapts on the body's features. Both in one process, so
with the same allocator, their repeats in turns, after their meta-gradients were found to agree.
Prints a table and writes `anil.md` and `anil.json` under `out`.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms import ANIL
from metalearn.benchmarks.distance import distance
from metalearn.benchmarks.machine import describe
from metalearn.benchmarks.models import BenchmarkConv4, module
from metalearn.benchmarks.quartiles import spread
from metalearn.benchmarks.report import markdown_table
from metalearn.commands.building.words import read_options
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint
from metalearn.gradients.peers.base import imported
from metalearn.inner import sgd
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory
from metalearn.types import Batch, Episodes

WAYS, QUERIES, SIZE, RATE, AGREE = 5, 15, 32, 0.1, 1e-4


@dataclass(frozen=True)
class Options:
    """What stands on the command line."""

    shots: str = "1,5"
    steps: int = 5
    tasks: int = 4
    threads: int = 2
    repeats: int = 7
    out: str = "experiments/engine"


def episodes(shots: int, tasks: int) -> Episodes:
    """Noise in the shape of a meta-batch."""
    g = torch.Generator().manual_seed(0)

    def batch(each: int) -> Batch:
        y = torch.arange(WAYS).repeat(each).expand(tasks, -1)
        return Batch(torch.randn(*y.shape, 3, SIZE, SIZE, generator=g), y)

    return Episodes(batch(shots), batch(QUERIES))


def learn2learn(
    net: BenchmarkConv4, tasks: Episodes, steps: int
) -> Callable[[], dict[str, Tensor]]:
    """A meta-step of learn2learn's example."""
    head = imported("learn2learn").algorithms.MAML(net.head, lr=RATE)
    body = nn.Sequential(net.features, nn.Flatten())
    rows = list(zip(*tasks.support[:2], *tasks.query[:2], strict=True))

    def step() -> dict[str, Tensor]:
        net.zero_grad()
        for x, y, query_x, query_y in rows:
            learner, features, judged = head.clone(), body(x), body(query_x)
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(features), y))
            (F.cross_entropy(learner(judged), query_y) / len(rows)).backward()
        return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}

    return step


def measure(options: Options, shots: int) -> dict[str, Any]:
    """Tasks a second of both at one number of shots. Raises UsageError where they disagree."""
    net, tasks = cast(BenchmarkConv4, module(f"conv4-{SIZE}")), episodes(shots, options.tasks)
    algo = ANIL(net, options.steps, sgd(RATE))
    meta = algo.init()
    engine, strategy = Engine(), Adjoint()
    answer = engine.autotune(strategy, algo, meta, tasks)
    runs = {
        "ours": lambda: engine(strategy, algo, meta, tasks)[0]["init"],
        "learn2learn": learn2learn(net, tasks, options.steps),
    }
    apart = distance(runs["ours"](), {n: g.clone() for n, g in runs["learn2learn"]().items()})[0]
    if not apart < AGREE:
        raise UsageError(f"the meta-gradients are {apart:.1e} apart; nothing was timed")
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append(options.tasks / (time.perf_counter() - started))
    rates = {name: spread(seconds[1:])._asdict() for name, seconds in taken.items()}
    return {"shots": shots, "plan": str(answer.plan), "apart": apart, "tasks_per_second": rates}


def main(given: list[str]) -> None:
    """Measure, print and write."""
    options = read_options(given, Options(), "anil")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = [measure(options, int(shots)) for shots in options.shots.split(",")]
    rows = []
    for row in found:
        ours, peer = (row["tasks_per_second"][name] for name in ("ours", "learn2learn"))
        shown = [f"{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in (ours, peer)]
        ratio = f"{ours['median'] / peer['median']:.2f}"
        rows.append([f"{row['shots']}", *shown, ratio, row["plan"], f"{row['apart']:.0e}"])
    head = ["shots", "ours, tasks/s", "learn2learn, tasks/s", "ratio", "our plan", "apart"]
    about = describe("cpu")
    text = (
        f"{about['cpu']}, {options.threads} threads, torch {torch.__version__}; Conv-4-64, "
        f"{SIZE}x{SIZE}x3, {WAYS} ways, {QUERIES} queries a class, K={options.steps}, "
        f"T={options.tasks}, float32; medians of {options.repeats} with quartiles."
    )
    command = " ".join(["python -m scripts.anil", *given])
    page = f"# ANIL\n\n{text}\n\n{markdown_table(head, rows)}\n\n    {command}\n"
    record = {"options": asdict(options), "machine": about, "rows": found}
    write_atomic(Path(options.out) / "anil.json", json.dumps(record, indent=1) + "\n")
    write_atomic(Path(options.out) / "anil.md", page)
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
