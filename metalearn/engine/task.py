"""What passes between a strategy and the engine: one task, and the way its pieces are run."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Meta, MetaGradients, Metrics


class Task(NamedTuple):
    """What one task brings: support `[S, *X]`, query `[Q, *X]`, and an int64 scalar that its
    dropout masks follow from, None where nothing drops."""

    support: Batch
    query: Batch
    seed: Tensor | None


Piece = Callable[..., Any]
"""(algo, meta, *tensors of a task, **options) -> tensors."""


class Run(Protocol):
    """How pieces are run. All but `meta` belongs to one task, or to each of T under `vmap`."""

    def __call__(
        self,
        piece: Callable[..., Any],
        algo: MetaAlgorithm,
        meta: Meta,
        *args: Any,
        **options: Any,
    ) -> Any:
        """What `piece(algo, meta, *args, **options)` returns."""
        ...

    @property
    def forward(self) -> bool:
        """Whether Hessian-vector products are to be taken forward over reverse."""
        ...

    @property
    def fused(self) -> bool:
        """Whether nothing stands around the pieces, so that values between them can be seen."""
        ...

    def numbers(self, steps: int, task: Task) -> Tensor:
        """The numbers of the inner steps as tensors, so that one compiled piece serves all."""
        ...


TaskGradient = Callable[[MetaAlgorithm, Meta, Task, Run], tuple[MetaGradients, Metrics]]
"""(algo, meta, one task or a part with T, run) -> its gradient and scalar metrics, or `[T]`."""
