"""The unrolled gradient with the curvature of the last inner steps alone, or of none."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.errors import check_whole
from metalearn.gradients.unroll import unrolled
from metalearn.inner.loop import InnerGradient, detached_gradient, inner_gradient
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Given, GradientAndMetrics, Kind, Meta, Params


def with_history_from(first: int) -> InnerGradient:
    """Inner gradients that count as constants before step `first`."""

    def gradient(
        algo: MetaAlgorithm, meta: Meta, fast: Params, given: Given, step: int | Tensor
    ) -> Params:
        taken = detached_gradient if step < first else inner_gradient
        return taken(algo, meta, fast, given, step)

    return gradient


def truncated(algo: MetaAlgorithm, meta: Meta, task: Task, last: int) -> GradientAndMetrics:
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
    kind: ClassVar[Kind] = "truncated"
    __call__ = plain_loop

    def __post_init__(self) -> None:
        check_whole("gradient.last", self.last)

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task, shaped like `meta`, and its metrics."""
        return run(truncated, algo, meta, task, last=self.last)


@dataclass(frozen=True)
class FirstOrder:
    """FOMAML: no second derivatives. Learned inner rates still get their gradient.

        d theta_K / d theta = 1,   d L_query(theta_K) / d theta = grad L_query(theta_K)

    Finn, Abbeel, Levine 2017, section 5.2; Nichol, Achiam, Schulman 2018, eq. 8.
    """

    kind: ClassVar[Kind] = "truncated"
    __call__ = plain_loop

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task, shaped like `meta`, and its metrics."""
        return run(truncated, algo, meta, task, last=0)
