"""T tasks from one: a Python loop, `vmap` over all, or `vmap` over n at a time.

`vmap` always stands outermost, around the whole gradient of a task. The other order, the
gradient of a vmapped loss, is silently wrong through fused norms (functorch issue 534).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.gradients.base import (
    Batching,
    MetaGradient,
    Strategy,
    check_algorithm,
)
from metalearn.gradients.precision import check_precision, full_precision
from metalearn.norms import fused_norms
from metalearn.types import Episodes, Meta, MetaGradients, Metrics

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm


def select(episodes: Episodes, rows: int | slice) -> Episodes:
    """Task `rows` (without T) or tasks `rows` (with T)."""
    return episodes.map(lambda t: t[rows])


def check_batching(batching: Batching) -> None:
    """Raise UsageError for a batching that is unknown."""
    number = isinstance(batching, int) and not isinstance(batching, bool) and batching > 0
    if batching not in ("auto", "loop", "vmap") and not number:
        raise UsageError(
            f"batching={batching!r} is not known; use auto, loop, vmap or a number of tasks"
        )


def resolve(batching: Batching, episodes: Episodes) -> int | None:
    """Tasks at a time under `vmap`, or None for a loop without it.

    "auto" loops on a CPU, where `vmap` makes grouped convolutions of half the speed, and
    vmaps elsewhere. Raises UsageError for anything else unknown.
    """
    check_batching(batching)
    tasks = episodes.support.x.shape[0]
    if batching == "auto":
        batching = "loop" if episodes.support.x.device.type == "cpu" else "vmap"
    if isinstance(batching, int):
        return min(batching, tasks)
    return tasks if batching == "vmap" else None


def _vmapped(f: Callable[[Episodes], object], episodes: Episodes) -> object:
    """`f` of one task over the leading T of every tensor in `episodes`."""
    # vmap takes no None, which a batch without weights holds.
    tensors = [t for batch in episodes for t in batch if t is not None]

    def from_tensors(*parts: Tensor) -> object:
        rest = iter(parts)
        return f(episodes.map(lambda _: next(rest)))

    return torch.func.vmap(from_tensors, randomness="different")(*tensors)


def map_tasks(
    f: Callable[[Episodes], object], episodes: Episodes, batching: Batching
) -> Iterator[tuple[int | None, object]]:
    """`f` of every task: pairs (tasks in the part, or None for one task without T; result)."""
    tasks = episodes.support.x.shape[0]
    size = resolve(batching, episodes)
    if size is None:
        for task in range(tasks):
            with fused_norms():
                result = f(select(episodes, task))
            yield None, result
        return
    for start in range(0, tasks, size):
        part = select(episodes, slice(start, start + size))
        yield min(size, tasks - start), _vmapped(f, part)


def over_tasks(
    strategy: Strategy,
    gradient: MetaGradient,
    algo: "MetaAlgorithm",
    meta: Meta,
    episodes: Episodes,
) -> tuple[MetaGradients, Metrics]:
    """The mean over tasks of `gradient`, and its metrics stacked to `[T]`.

    gradient: of one task, without T and with scalar metrics.
    Batched and in the precision that `strategy` says. Raises UsageError where it cannot be, or
    where `algo` is not defined for the strategy.
    """
    check_precision(strategy.precision)
    check_algorithm(strategy, algo)
    tasks = episodes.support.x.shape[0]
    if not tasks:
        raise UsageError("no episodes in the meta-batch; use training.meta_batch of 1 or more")
    total: MetaGradients | None = None
    metrics: list[Metrics] = []

    # Outside no_grad a caller's own graph would keep every inner step alive.
    with torch.no_grad(), full_precision(episodes.support.x.device):
        for count, result in map_tasks(
            lambda e: gradient(algo, meta, e), episodes, strategy.batching
        ):
            part, measured = cast(tuple[MetaGradients, Metrics], result)
            if count is None:
                measured = tree.map(lambda t: t.unsqueeze(0), measured)
            else:
                part = _both(lambda a: tree.map(lambda t: t.sum(0), a), part)
            total = part if total is None else _both(tree.add, total, part)
            metrics.append(measured)
        assert total is not None
        mean = _both(lambda a: tree.scale(a, 1 / tasks), total)
        return mean, tree.map(lambda *parts: torch.cat(parts), *metrics)


def _both(f: Callable[..., tree.Params], *gradients: MetaGradients) -> MetaGradients:
    return MetaGradients(
        init=f(*(g["init"] for g in gradients)), hyper=f(*(g["hyper"] for g in gradients))
    )
