"""What passes between a strategy and the engine: one task, and the way its pieces are run."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Episodes, Given, GradientAndMetrics, Meta, map_tensors


class Task(NamedTuple):
    """One task, or T of them with a leading T.

    given: what it adapts on, support `[S, *X]`. query: `[Q, *X]`.
    seed: int64 scalar that its dropout masks follow from, None where nothing drops.
    """

    given: Given
    query: Batch
    seed: Tensor | None

    def at(self, rows: int | slice) -> "Task":
        """Of T tasks number `rows`, without T, or tasks `rows`, with T."""
        seed = None if self.seed is None else self.seed[rows]
        return Task(self.given.map(lambda t: t[rows]), self.query.map(lambda t: t[rows]), seed)


def tasks_of(algo: MetaAlgorithm, episodes: Episodes, seed: Tensor | None = None) -> Task:
    """The T tasks of `episodes` as `algo` may see them: where it is transductive, the queries'
    inputs are among those without labels."""
    unlabelled = episodes.unlabelled
    if algo.transductive:
        query = episodes.query._replace(y=map_tensors(torch.zeros_like, episodes.query.y))
        unlabelled = query if unlabelled is None else _joined(unlabelled, query)
    return Task(Given(episodes.support, unlabelled), episodes.query, seed)


def _joined(a: Batch, b: Batch) -> Batch:
    """The examples of both, along B."""
    if a.weight is not None or b.weight is not None:
        a, b = _weighted(a), _weighted(b)
    parts = iter([*_tensors(b)])
    return a.map(lambda t: torch.cat([t, next(parts)], 1))


def _weighted(batch: Batch) -> Batch:
    x = _tensors(batch)[0]
    ones = torch.ones(x.shape[:2], device=x.device)
    return batch if batch.weight is not None else batch._replace(weight=ones)


def _tensors(batch: Batch) -> list[Tensor]:
    """In the order in which `Batch.map` meets them."""
    found: list[Tensor] = []
    batch.map(lambda t: (found.append(t), t)[1])
    return found


Piece = Callable[..., Any]
"""(algo, meta, *tensors of a task, **options) -> tensors."""


class Run(Protocol):
    """How pieces are run. All but `meta` belongs to one task, or to each of T under `vmap`."""

    def __call__(
        self, piece: Piece, algo: MetaAlgorithm, meta: Meta, *args: Any, **options: Any
    ) -> Any:
        """What `piece(algo, meta, *args, **options)` returns."""
        ...

    @property
    def forward_over_reverse(self) -> bool:
        """Whether Hessian-vector products are to be taken forward over reverse."""
        ...

    @property
    def fused(self) -> bool:
        """Whether nothing stands around the pieces, so that values between them can be seen."""
        ...

    def numbers(self, steps: int, task: Task) -> Tensor:
        """0, 1, ..., `steps` as tensors, so that one compiled piece serves every inner step."""
        ...


TaskGradient = Callable[[MetaAlgorithm, Meta, Task, Run], GradientAndMetrics]
"""(algo, meta, one task or a part with T, run) -> its gradient and scalar metrics, or `[T]`."""


def seeds(count: int, device: torch.device) -> Tensor:
    """A seed for the dropout masks and the noise of each task, from torch's generator."""
    return torch.randint(2**62, (count,)).to(device)
