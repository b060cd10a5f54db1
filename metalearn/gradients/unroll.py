"""Backpropagation through the whole inner loop, exact and with history of every step."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.gradients.steps import meta_gradient, query_loss
from metalearn.inner.loop import InnerGradient, inner_gradient, trajectory
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Kind, Meta, Metrics


def unrolled(
    algo: MetaAlgorithm, meta: Meta, task: Task, gradient: InnerGradient = inner_gradient
) -> GradientAndMetrics:
    """One task: the gradient of the outer loss, the inner gradient being `gradient`."""
    weighted = algo.step_weights(meta) is not None

    def objective(full: Meta) -> tuple[Tensor, Metrics]:
        path = trajectory(algo, full, task.given, algo.steps, task.seed, gradient)
        *losses, (loss, metrics) = [
            query_loss(algo, full, fast, task, step)
            for step, (fast, _) in enumerate(path)
            if weighted or step == algo.steps
        ]
        return sum((earlier for earlier, _ in losses), loss), metrics

    return meta_gradient(objective, meta)


@dataclass(frozen=True)
class Unroll:
    """The exact second-order meta-gradient by reverse mode through all K steps.

    Memory grows with K times the activations of one step; `Checkpointed` and `Adjoint` avoid
    that.
    """

    kind: ClassVar[Kind] = "exact"
    __call__ = plain_loop

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task's outer loss, shaped like `meta`, and its metrics."""
        return run(unrolled, algo, meta, task)
