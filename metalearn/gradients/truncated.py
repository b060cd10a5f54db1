"""The unrolled gradient with the curvature of the last inner steps alone."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metalearn.engine.batching import over_tasks
from metalearn.engine.strategy import Batching, Capture
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError
from metalearn.functional.precision import Precision
from metalearn.gradients.unroll import unrolled
from metalearn.inner.loop import InnerGradient, inner_gradient, without_history
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Episodes, Kind, Meta, MetaGradients, Metrics, Params


def with_history_from(first: int) -> InnerGradient:
    """Inner gradients that count as constants before step `first`."""

    def gradient(
        algo: MetaAlgorithm, meta: Meta, fast: Params, support: Batch, step: int | Tensor
    ) -> Params:
        taken = without_history if step < first else inner_gradient
        return taken(algo, meta, fast, support, step)

    return gradient


def truncated(
    algo: MetaAlgorithm, meta: Meta, task: Task, last: int
) -> tuple[MetaGradients, Metrics]:
    """One task: the unrolled gradient, second derivatives in the last `last` steps alone."""
    return unrolled(algo, meta, task, gradient=with_history_from(algo.steps - last))


@dataclass(frozen=True)
class Truncated:
    """The curvature of the last `last` steps; before them d theta_{k+1} / d theta_k is what the
    rule alone makes it (1 for gradient descent).

    last: 0 is `FirstOrder`, K or more is `Unroll`; memory grows with it. Learned inner rates
    get their gradient from every step. Raises UsageError for a negative one.

    Shaban, Cheng, Hatch, Boots: Truncated Back-propagation for Bilevel Optimization, 2019.
    """

    last: int = 1
    batching: Batching = "loop"
    precision: Precision = "fp32"
    capture: Capture = "none"
    kind: ClassVar[Kind] = "truncated"

    def __post_init__(self) -> None:
        if self.last < 0:
            raise UsageError(f"gradient.last={self.last} must be 0 or more")

    def _gradient(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run):
        return run(truncated, algo, meta, task, last=self.last)

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, self._gradient, algo, meta, episodes)
