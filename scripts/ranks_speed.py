"""Two ranks on two cores beside one process on one core: the tasks a second of meta-training.

    uv run python -m scripts.ranks_speed [turns]

MAML, K=5, T=16, 5-way 1-shot, 15 queries a class, a strided Conv-4 on 28x28 glyphs; whole
meta-steps of `metalearn train`, episodes included, each process on a core of its own, in turns.
Beside the time that passed stands that of the processor, of the slower rank: on a machine that
others use the first tells of them too. Prints a table and writes `ranks.json` and `ranks.md` into
`experiments/engine`.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metalearn.benchmarks.machine import describe
from metalearn.benchmarks.report import markdown_table
from metalearn.commands.building.config import compose
from metalearn.commands.building.meta_training import build
from metalearn.engine.ranks import Ranks
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory
from metalearn.tracking import Tracker

OUT = Path("experiments/engine")
RANKS, TASKS, STEPS = 2, 16, 1
CONFIG = [
    "dataset=glyphs", "dataset.classes=60", "dataset.size=28", "backbone=conv4_strided",
    "algorithm=maml", "algorithm.steps=5", "episodes.ways=5", "episodes.shots=1",
    "episodes.queries=15", f"training.meta_batch={TASKS}", "batching=loop", "device=cpu",
    "training.workers=0", "tracker=disabled", "run_dir=none",
]  # fmt: skip


class Trainer:
    """Meta-steps of one process, alone or as a rank."""

    def __init__(self) -> None:
        self.stage, self.number = build(compose(CONFIG))[1], 0
        self.batches = self.stage.batches(range(10_000), 0)

    def run(self, steps: int) -> tuple[float, float]:
        """The seconds that passed in so many steps, and those of the processor."""
        passed, spent = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.number += 1
            self.stage.step(self.number, next(self.batches), Tracker([]))
        return time.perf_counter() - passed, time.process_time() - spent


def reduction(ranks: Ranks, trainer: Trainer) -> float:
    """Milliseconds of an all-reduce of the meta-gradient, where both are there."""
    parts = [t.detach().clone() for t in trainer.stage.meta["init"].values()]
    ranks.gathered(None)
    started = time.perf_counter()
    for _ in range(20):
        ranks.summed(parts)
    return 1e3 * (time.perf_counter() - started) / 20


def work(rank: int, place: str, pipe: Connection) -> None:
    """A process on a core of its own, which does what it is told through `pipe`."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    keep_freed_memory()
    alone = Trainer()  # before there are ranks to join
    store = dist.FileStore(place, RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    shared, ranks = Trainer(), Ranks.joined()
    assert ranks is not None and shared.stage.ranks is ranks
    shared.run(1)
    if rank == 0:
        alone.run(1)
    while (asked := pipe.recv()) != "end":
        if asked == "reduction":
            pipe.send(reduction(ranks, shared))
        else:
            pipe.send((alone if asked == "alone" else shared).run(STEPS))
    ranks.leave()


def measured(turns: int) -> dict[str, Any]:
    """Every turn of both."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[Any]] = {"alone": [], "ranks": [], "reduction": []}
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(RANKS):
            own, theirs = context.Pipe()
            given = (rank, f"{folder}/meet", theirs)
            processes.append(context.Process(target=work, args=given))
            processes[-1].start()
            pipes.append(own)
        for _ in range(turns):
            for name, those in (("alone", pipes[:1]), ("ranks", pipes), ("reduction", pipes)):
                for pipe in those:
                    pipe.send(name)
                found[name].append([pipe.recv() for pipe in those])
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
    return found


def page(record: dict[str, Any]) -> str:
    """The table in Markdown."""
    machine, load = record["machine"], record["load"]
    body = [
        (name, *(f"{row[f'{kind}_{key}']:.2f}" for kind in ("passed", "spent") for key in
                 ("alone", "ranks", "ratio")))
        for name, row in record["rows"].items()
    ]  # fmt: skip
    every = [f"{what}, by {by}" for by in ("time", "processor time") for what in
             ("one process", "two ranks", "ratio")]  # fmt: skip
    head = ("tasks a second", *every)
    return (
        "# Ranks\n\n"
        f"`{record['command']}`: tasks a second of MAML, K=5, T={TASKS}, 5-way 1-shot, 15 queries "
        "a class, a strided Conv-4 on 28x28 glyphs, float32, a loop over tasks that is not "
        "compiled; one process on one core, and two ranks on two; "
        f"{len(record['turns']['alone'])} turns of a meta-step each. {machine['cpu']}, "
        f"{machine['cores']} cores, torch {torch.__version__}; load {load[0]:.1f} before and "
        f"{load[1]:.1f} after, this script's own included.\n\n"
        f"{markdown_table(head, body)}\n\n"
        f"An all-reduce of the meta-gradient ({record['numbers']:,} numbers) takes "
        f"{record['reduction']:.2f} ms, {100 * record['reduction'] / record['step']:.2f}% of a "
        "meta-step of two ranks: overlapping it in buckets could win no more than that.\n"
    )


def rates(turns: list[list[Any]], kind: int) -> list[float]:
    """Tasks a second of each turn, by the slower of its processes."""
    return [TASKS * STEPS / max(pair[kind] for pair in turn) for turn in turns]


def main() -> None:
    """Measure, print and write."""
    before, turns = os.getloadavg()[0], int(sys.argv[1]) if sys.argv[1:] else 15
    found = measured(turns)
    rows: dict[str, dict[str, float]] = {"median": {}, "best": {}}
    for kind, name in enumerate(("passed", "spent")):
        for row, of in (("median", statistics.median), ("best", max)):
            own = {by: of(rates(found[by], kind)) for by in ("alone", "ranks")}
            rows[row] |= {f"{name}_{by}": value for by, value in own.items()}
            rows[row][f"{name}_ratio"] = own["ranks"] / own["alone"]
    stage = build(compose(CONFIG))[1]
    record = {
        "command": f"uv run python -m scripts.ranks_speed {turns}",
        "config": CONFIG,
        "rows": rows,
        "turns": found,
        "numbers": sum(t.numel() for t in stage.meta["init"].values()),
        "reduction": statistics.median(max(turn) for turn in found["reduction"]),
        "step": 1e3 * TASKS / rows["median"]["passed_ranks"],
        "load": [before, os.getloadavg()[0]],
        "machine": describe("cpu"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT / "ranks.json", json.dumps(record, indent=2) + "\n")
    write_atomic(OUT / "ranks.md", page(record))
    print(page(record))


if __name__ == "__main__":
    main()
