"""What each adaptation costs: weights, memory and time of one second-order meta-gradient.

    uv run python -m scripts.lora [backbone=cifar_resnet56 steps=5 repeats=5 device=auto ...]

One 5-way 1-shot task of 32x32 images with 15 queries a class, every adaptation and strategy in a
process of its own. Prints a table and writes `adaptation.md` and `adaptation.json` under `out`.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn import tree
from metalearn.algorithms import MAML
from metalearn.backbones import CifarResNet, Conv4, ResNet12, adaptation
from metalearn.backbones.adaptation import Adaptation, Learned
from metalearn.benchmarks.machine import describe, peak_growth, synchronise
from metalearn.benchmarks.memory import PeakBytes
from metalearn.benchmarks.report import markdown_table
from metalearn.commands.building.arguments import check_choice
from metalearn.commands.building.words import read_options
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import sgd
from metalearn.runtime.device import torch_device
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory
from metalearn.types import Batch, Episodes, Given

WAYS, SHOTS, QUERIES, SIZE, RATE = 5, 1, 15, 32, 0.01


@dataclass(frozen=True)
class Options:
    """What stands on the command line. outer: of all adaptations, see `backbones.adaptation`."""

    backbone: str = "cifar_resnet56"
    norm: str = "frozen"
    outer: str = "adapted"
    steps: int = 5
    rank: int = 4
    repeats: int = 5
    device: str = "auto"
    threads: int = 1
    out: str = "experiments/two_stage"


BACKBONES: dict[str, Callable[[Any], nn.Module]] = {
    "cifar_resnet56": lambda norm: CifarResNet(WAYS, norm=norm),
    "cifar_resnet20": lambda norm: CifarResNet(WAYS, depth=20, norm=norm),
    "resnet12": lambda norm: ResNet12(WAYS, size=SIZE, norm=norm),
    "conv4": lambda norm: Conv4(WAYS, 3, size=SIZE, norm=norm),
}
STRATEGIES = {"adjoint": Adjoint, "unroll": Unroll}
ADAPTATIONS: dict[str, Callable[[Options, Learned], Adaptation]] = {
    "all": lambda options, outer: adaptation.everything(),
    "lora": lambda options, outer: adaptation.lora(options.rank, options.rank, outer),
    "last_k": lambda options, outer: adaptation.last_k(1, outer),
    "norm": lambda options, outer: adaptation.norm(outer),
    "bitfit": lambda options, outer: adaptation.bitfit(outer),
    "head": lambda options, outer: adaptation.head(outer),
}


def task(device: torch.device) -> Episodes:
    """Noise in the shape of a meta-batch of one."""
    g = torch.Generator().manual_seed(0)

    def batch(each: int) -> Batch:
        y = torch.arange(WAYS).repeat(each)
        return Batch(torch.randn(1, len(y), 3, SIZE, SIZE, generator=g), y.unsqueeze(0))

    return Episodes(batch(SHOTS), batch(QUERIES)).map(lambda t: t.to(device))


def measure(options: Options, kind: str, strategy: str) -> dict[str, Any]:
    """One adaptation under one strategy, in this process.

    peak: bytes beyond weights and task, on a CPU of every tensor that torch held at once, on CUDA
    the allocator's. seconds: the median of `repeats`.
    """
    device = torch_device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    chosen = ADAPTATIONS[kind](options, options.outer)  # type: ignore[arg-type]
    net = chosen.prepare(BACKBONES[options.backbone](options.norm), "head")
    algo = MAML(net, options.steps, sgd(RATE), adapting=chosen.adapting(net, "head"))
    meta = tree.map_meta(lambda t: t.to(device), algo.init())
    episodes = task(device)
    gradient = STRATEGIES[strategy]()
    gradient(algo, meta, episodes)
    if device.type == "cuda":
        peak = peak_growth("cuda", lambda: gradient(algo, meta, episodes))
    else:
        held = [
            t for part in (meta, tuple(episodes[:2])) for t in tree.leaves(part) if t is not None
        ]
        with PeakBytes(*held) as counter:
            gradient(algo, meta, episodes)
        peak = counter.peak
    keep_freed_memory()
    taken = []
    for _ in range(options.repeats + 1):
        synchronise(device.type)
        started = time.perf_counter()
        gradient(algo, meta, episodes)
        synchronise(device.type)
        taken.append(time.perf_counter() - started)
    fast = algo.begin(meta, Given(episodes.support))
    return {
        "adaptation": kind,
        "strategy": strategy,
        "adapted": sum(w.numel() for w in fast.values()),
        "learned": sum(w.numel() for w in meta["init"].values()),
        "weights": sum(p.numel() for p in net.parameters()),
        "peak": peak,
        "seconds": statistics.median(taken[1:]),
    }


def apart(given: list[str], kind: str, strategy: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "scripts.lora", "one", kind, strategy, *given]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = json.loads(said.splitlines()[-1])
    print(f"{kind} {strategy}: {row['seconds'] * 1e3:.1f} ms", file=sys.stderr)
    return row


def table(found: list[dict[str, Any]]) -> str:
    """One row an adaptation."""
    head = ["adaptation", "adapted", "learned"]
    head += [f"{strategy} {unit}" for strategy in STRATEGIES for unit in ("MiB", "ms")]
    rows = []
    for kind in ADAPTATIONS:
        mine = {r["strategy"]: r for r in found if r["adaptation"] == kind}
        row = [kind, *(f"{mine['adjoint'][name]:,}" for name in ("adapted", "learned"))]
        for strategy in STRATEGIES:
            peak, seconds = mine[strategy]["peak"], mine[strategy]["seconds"]
            row += [f"{peak / 2**20:.1f}", f"{seconds * 1e3:.1f}"]
        rows.append(row)
    return markdown_table(head, rows)


def main(given: list[str]) -> None:
    """Every adaptation under both strategies, or `one <adaptation> <strategy>` of them."""
    if given[:1] == ["one"]:
        print(json.dumps(measure(read_options(given[3:], Options(), "lora"), *given[1:3])))
        return
    options = read_options(given, Options(), "lora")
    check_choice("backbone", options.backbone, tuple(BACKBONES))
    found = [apart(given, kind, strategy) for kind in ADAPTATIONS for strategy in STRATEGIES]
    device = torch_device(options.device)
    about = describe(device.type)
    where = about["gpu"] or f"{about['cpu']}, {options.threads} thread"
    text = (
        f"{where}, torch {torch.__version__}; {options.backbone}, norm={options.norm}, "
        f"outer={options.outer}, LoRA of rank {options.rank}; K={options.steps}, one "
        f"{WAYS}-way {SHOTS}-shot task, {QUERIES} queries a class, {SIZE}x{SIZE}; medians of "
        f"{options.repeats}. Peak memory is beyond weights and task."
    )
    command = " ".join(["python -m scripts.lora", *given])
    page = f"# What each adaptation costs\n\n{text}\n\n{table(found)}\n\n    {command}\n"
    record = {"options": asdict(options), "machine": about, "rows": found}
    folder = Path(options.out)
    write_atomic(folder / "adaptation.json", json.dumps(record, indent=1) + "\n")
    write_atomic(folder / "adaptation.md", page)
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
