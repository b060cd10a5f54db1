"""Backpropagation through the whole inner loop, exact and with history of every step."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metalearn.engine.batching import over_tasks
from metalearn.engine.strategy import Batching, Capture
from metalearn.engine.task import Run, Task
from metalearn.functional.autodiff import gradient_at
from metalearn.functional.precision import Precision
from metalearn.gradients.steps import judged
from metalearn.inner.loop import InnerGradient, inner_gradient, trajectory
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Kind, Meta, MetaGradients, Metrics


def unrolled(
    algo: MetaAlgorithm, meta: Meta, task: Task, gradient: InnerGradient = inner_gradient
) -> tuple[MetaGradients, Metrics]:
    """One task: the gradient of `outer_loss(adapt(meta))`, the inner gradient being `gradient`."""

    def objective(learned: MetaGradients) -> tuple[Tensor, Metrics]:
        full = Meta(**learned, buffers=meta["buffers"])
        *_, (fast, _) = trajectory(algo, full, task.support, algo.steps, task.seed, gradient)
        return judged(algo, full, fast, task)

    learned = MetaGradients(init=meta["init"], hyper=meta["hyper"])
    (gradients,), metrics = gradient_at(objective, learned, has_aux=True)
    return gradients, metrics


def unroll(algo: MetaAlgorithm, meta: Meta, task: Task, run: Run):
    """`unrolled` as one piece."""
    return run(unrolled, algo, meta, task)


@dataclass(frozen=True)
class Unroll:
    """The exact second-order meta-gradient by reverse mode through all K steps.

    Memory grows with K times the activations of one step; `Checkpointed` and `Adjoint` avoid
    that.
    """

    batching: Batching = "loop"
    precision: Precision = "fp32"
    capture: Capture = "none"
    kind: ClassVar[Kind] = "exact"

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, unroll, algo, meta, episodes)
