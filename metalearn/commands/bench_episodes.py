"""`metalearn bench episodes`: how fast episodes are made, and what share of a step that is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from metalearn.benchmarks import machine
from metalearn.benchmarks.episodes import Shape, measure, share
from metalearn.benchmarks.quartiles import spread
from metalearn.benchmarks.report import markdown_table
from metalearn.commands.arguments import read_options
from metalearn.commands.config import compose
from metalearn.commands.episodes import build_dataset
from metalearn.data import ImageDataset
from metalearn.errors import UsageError
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory

HEAD = ("data set", "made by", "episodes/s", "quartiles", "ours is")


@dataclass(frozen=True)
class Options:
    """What stands on the command line. seconds: of one repeat."""

    datasets: str = "omniglot,cifar_fs"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    seconds: float = 1.0
    repeats: int = 5
    threads: int = 0
    out: str = "experiments/episodes"


def bench_episodes(arguments: Sequence[str], console: Console) -> None:
    """Print and write the table. Raises UsageError."""
    chosen = read_options(arguments, Options())
    torch.set_num_threads(chosen.threads or machine.processors())
    keep_freed_memory()
    shape = Shape(chosen.ways, chosen.shots, chosen.queries)
    rows, shares = [], []
    for name in chosen.datasets.split(","):
        dataset = build_dataset(compose([f"dataset={name}"]))
        if not isinstance(dataset, ImageDataset):
            raise UsageError(f"datasets={name} has no images")
        rows += measure(dataset, shape, chosen.seconds, chosen.repeats)
        shares.append(share(dataset, shape))
    body = []
    for row in rows:
        rate = spread(row["episodes_per_second"])
        quartiles = f"{rate.low:.4g} to {rate.high:.4g}"
        told = "" if row["maker"] == "ours" else f"{row['ours_is']:.3g}x"
        body.append([row["dataset"], row["maker"], f"{rate.median:.4g}", quartiles, told])
    table = Table(*HEAD, box=None, pad_edge=False)
    for line in body:
        table.add_row(*line)
    console.print(table)
    told = [
        f"{s['dataset']}: making {s['tasks']} augmented episodes takes {s['making'] * 1e3:.2f} ms, "
        f"a MAML step on them (Conv-4-64, K=1) {s['step'] * 1e3:.1f} ms: "
        f"{s['share']:.1%} of both together; made by a thread meanwhile, the engine waits "
        f"{s['waiting'] * 1e3:.2f} ms, and its step takes {s['step_beside'] * 1e3:.1f} ms"
        for s in shares
    ]
    for line in told:
        console.print(line, soft_wrap=True, highlight=False)
    about = machine.describe("cpu")
    threads = torch.get_num_threads()
    head = (
        f"{about['cpu']}, {threads} thread(s) of {about['cores']} cores, "
        f"torch {machine.version('torch')}, learn2learn {machine.version('learn2learn')}; "
        f"{chosen.ways}-way {chosen.shots}-shot, {chosen.queries} queries a class; medians of "
        f"{chosen.repeats} repeats in turns; the images in memory for all"
    )
    folder = Path(chosen.out)
    page = "\n\n".join([head, markdown_table(HEAD, body), "\n".join(f"- {line}" for line in told)])
    write_atomic(folder / "speed.md", f"# Speed of making episodes\n\n{page}\n")
    saved = {"machine": about, "threads": threads, "makers": rows, "shares": shares}
    write_atomic(folder / "speed.json", json.dumps(saved, indent=1) + "\n")
    console.print(f"written to {folder}", soft_wrap=True)
