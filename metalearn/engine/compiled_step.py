"""A meta-step as one compiled function, found again in less time than a small network takes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.functional.precision import Precision, computing_in
from metalearn.types import Batch, Episodes, GradientAndMetrics, Meta


class CompiledStep(NamedTuple):
    """A meta-step of all tasks as one compiled function, of `tensors_of(meta, episodes)`. serves:
    whether it was made for tensors like these."""

    serves: Callable[..., bool]
    code: Callable[[Sequence[Tensor]], GradientAndMetrics]
    serial: bool
    precision: Precision
    device: torch.device

    def __call__(self, tensors: Sequence[Tensor]) -> GradientAndMetrics:
        with Apart(self.serial), computing_in(self.precision, self.device):
            return self.code(tensors)


def _parts(batch: Batch | None) -> Sequence[Any]:
    """x, y and weight; of dicts their values."""
    if batch is None:
        return ()
    x, y, weight = batch
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return batch
    both = (part.values() if isinstance(part, dict) else (part,) for part in (x, y))
    return [*next(both), *next(both), weight]


def tensors_of(meta: Meta, episodes: Episodes) -> list[Tensor]:
    """In the order of `tree.leaves` of what is compiled, which would take longer."""
    given = *meta["init"].values(), *meta["hyper"].values(), *meta["buffers"].values()
    support, query, unlabelled = episodes
    parts = *_parts(support), *_parts(unlabelled), *_parts(query)
    return [t for t in (*given, *parts) if t is not None]


def structure_of(episodes: Episodes) -> tuple:
    """What of `episodes` shows in no tensor: names and their order, and which weights there are."""
    support, query, unlabelled = episodes
    values = (*support[:2], *query[:2], *(unlabelled or ())[:2])
    # Of all parts, and in their order, which the tensors follow.
    names = tuple([tuple(v) if isinstance(v, dict) else None for v in values])
    padded = support.weight is not None, query.weight is not None
    rest = None if unlabelled is None else unlabelled.weight is not None
    return *padded, rest, names


class Apart:
    """Inside, no gradient is recorded, or a caller's own graph would keep every inner step alive;
    and torch uses one core, where that is asked for.

    Neither a generator nor `torch.no_grad`, which a small network's step would notice.
    """

    def __init__(self, serial: bool):
        self.serial = serial

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled(), torch.get_num_threads()
        torch.set_grad_enabled(False)
        if self.serial:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        recorded, threads = self.before
        torch.set_grad_enabled(recorded)
        if self.serial:
            torch.set_num_threads(threads)
