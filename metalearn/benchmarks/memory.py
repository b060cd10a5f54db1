"""Peak tensor memory of a meta-gradient, every byte that a torch operation left alive, and what
a strategy that saves memory pays for it in time."""

import functools
import statistics
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metalearn import tree
from metalearn.algorithms import MAML
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks.ours import engine_and_strategy, ours
from metalearn.benchmarks.machine import memory_available, peak_growth, synchronise
from metalearn.benchmarks.models import episodes, module
from metalearn.functional.torch_private import TorchDispatchMode, pytree, storage_key
from metalearn.inner import sgd

STRATEGIES = tuple(
    f"{name}:loop:fp32"
    for name in ("unroll", "adjoint", "checkpointed", "first_order", "learn2learn", "higher")
)


class PeakBytes(TorchDispatchMode):
    """The peak of the bytes in tensor storages, other than those of `excluded`."""

    def __init__(self, *excluded: torch.Tensor):
        super().__init__()
        self.live = self.peak = 0
        self.known = {storage_key(tensor.untyped_storage()) for tensor in excluded}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage_key(storage), storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def measure(cell: Cell, name: str, device: str = "cpu") -> dict[str, Any]:
    """Bytes of one meta-step of the strategy `name`, see `frameworks.ours.engine_and_strategy`.

    peak: beyond weights and tasks. fast_copies: the K copies of the fast weights in it, which
    the adjoint keeps by design. On CUDA the peak is the allocator's.
    """
    algo = MAML(module(cell.model), cell.steps, sgd(cell.rate))
    meta = tree.map_meta(lambda t: t.to(device), algo.init())
    tasks = episodes(cell).map(lambda t: t.to(device))
    engine, strategy = engine_and_strategy(name)
    gradient = functools.partial(engine, strategy)
    if device == "cuda":
        peak = peak_growth(device, lambda: gradient(algo, meta, tasks))
    else:
        inputs = [t for t in pytree.tree_leaves((meta, tasks)) if isinstance(t, torch.Tensor)]
        with PeakBytes(*inputs) as counter:
            gradient(algo, meta, tasks)
        peak = counter.peak
    copies = cell.steps * sum(w.numel() * w.element_size() for w in meta["init"].values())
    told = {"strategy": name.partition(":")[0], "peak": peak, "fast_copies": copies}
    return {"model": cell.model, "steps": cell.steps, "tasks": cell.tasks, **told}


def by_steps(
    model: str = "conv4-84",
    steps: Sequence[int] = (1, 5, 20, 50),
    strategies: Sequence[str] = STRATEGIES,
    device: str = "cpu",
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """The peak of each strategy on one task, for every K that fits, and its seconds.

    A step count whose peak, carried on from the two before it, would take more than half of the
    free memory is left out. The strategies take turns to be timed; seconds: of one meta-step
    as it stands, not compiled, the median of `repeats`.
    """
    found: list[dict[str, Any]] = []
    for name in strategies:
        mine: list[dict[str, Any]] = []
        for k in sorted(steps):
            if device == "cpu" and expected(mine, k) > memory_available() / 2:
                break
            mine.append(measure(Cell(model, k, 1), name, device))
        found += mine
    names = {name.partition(":")[0]: name for name in strategies}
    for k in steps:
        _time([r for r in found if r["steps"] == k], names, repeats, device)
    return found


def _time(
    records: Sequence[dict[str, Any]], names: Mapping[str, str], repeats: int, device: str
) -> None:
    """Fill in `seconds`. names: the whole name of a record's strategy."""
    took: list[list[float]] = [[] for _ in records]
    for _ in range(repeats + 1):
        for record, seconds in zip(records, took, strict=True):
            cell = Cell(record["model"], record["steps"], record["tasks"])
            step = ours(cell, *engine_and_strategy(names[record["strategy"]]), device)
            start = time.perf_counter()
            step()
            synchronise(device)
            seconds.append(time.perf_counter() - start)
    for record, (_, *seconds) in zip(records, took, strict=True):  # the first warms up
        record["seconds"] = statistics.median(seconds)


def expected(measured: Sequence[dict[str, Any]], steps: int) -> float:
    """The peak at `steps`, on the line through the last two that were measured."""
    if len(measured) < 2:
        return 0.0
    (a, b), (c, d) = ((r["steps"], r["peak"]) for r in measured[-2:])
    return d + (d - b) / (c - a) * (steps - c)
