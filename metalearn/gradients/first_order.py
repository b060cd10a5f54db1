"""The first-order approximation: the inner gradients count as constants."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn import tree
from metalearn.gradients.base import Batching, Precision
from metalearn.gradients.batching import over_tasks
from metalearn.gradients.unroll import unrolled
from metalearn.inner.loop import inner_gradient
from metalearn.types import Batch, Episodes, Meta, MetaGradients, Metrics, Params

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm


def without_history(algo: "MetaAlgorithm", meta: Meta, fast: Params, support: Batch) -> Params:
    """The inner gradient as a constant. Its inputs are cut, so that no graph is recorded."""
    constant = Meta(
        init=tree.detach(meta["init"]), hyper=tree.detach(meta["hyper"]), buffers=meta["buffers"]
    )
    return inner_gradient(algo, constant, tree.detach(fast), support)


def first_order(
    algo: "MetaAlgorithm", meta: Meta, episodes: Episodes
) -> tuple[MetaGradients, Metrics]:
    """One task: the unrolled gradient without any second derivative."""
    return unrolled(algo, meta, episodes, gradient=without_history)


@dataclass(frozen=True)
class FirstOrder:
    """FOMAML: d theta_K / d theta = 1. Learned inner rates still get their gradient.

    Finn, Abbeel, Levine 2017, section 5.2; Nichol, Achiam, Schulman 2018, eq. 8.
    """

    batching: Batching = "auto"
    precision: Precision = "fp32"

    def __call__(
        self, algo: "MetaAlgorithm", meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, first_order, algo, meta, episodes)
