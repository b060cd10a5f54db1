"""Backpropagation through the whole inner loop, exact and with history of every step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.func import grad

from metalearn.gradients.base import Batching, Precision
from metalearn.gradients.batching import over_tasks
from metalearn.inner.loop import InnerGradient, adapt, inner_gradient
from metalearn.types import Episodes, Meta, MetaGradients, Metrics

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm


def unrolled(
    algo: "MetaAlgorithm", meta: Meta, episodes: Episodes, gradient: InnerGradient = inner_gradient
) -> tuple[MetaGradients, Metrics]:
    """One task: the gradient of `outer_loss(adapt(meta))`, the inner gradient being `gradient`."""

    def objective(learned: MetaGradients) -> tuple[Tensor, Metrics]:
        full = Meta(**learned, buffers=meta["buffers"])
        fast = adapt(algo, full, episodes.support, gradient=gradient)
        return algo.outer_loss(full, fast, episodes.query)

    learned = MetaGradients(init=meta["init"], hyper=meta["hyper"])
    return grad(objective, has_aux=True)(learned)


@dataclass(frozen=True)
class Unroll:
    """The exact second-order meta-gradient by reverse mode through all K steps.

    Memory grows with K times the activations of one step; `Adjoint` avoids that.
    """

    batching: Batching = "auto"
    precision: Precision = "fp32"

    def __call__(
        self, algo: "MetaAlgorithm", meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, unrolled, algo, meta, episodes)
