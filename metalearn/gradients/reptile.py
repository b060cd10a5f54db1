"""Reptile's direction, as a gradient that any outer optimizer can follow."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.gradients.base import Batching, Precision
from metalearn.gradients.batching import over_tasks
from metalearn.inner.loop import adapt
from metalearn.types import Episodes, Meta, MetaGradients, Metrics

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm


def reptile(algo: "MetaAlgorithm", meta: Meta, episodes: Episodes) -> tuple[MetaGradients, Metrics]:
    """One task: theta - theta_K, and 0 for what does not adapt. Queries only measure."""
    if meta["hyper"]:
        raise UsageError("Reptile learns no inner rates; use inner=sgd")
    fast = adapt(algo, meta, episodes.support)
    _, metrics = algo.outer_loss(meta, fast, episodes.query)
    moved = {
        name: weight - fast[name] if name in fast else weight.new_zeros(weight.shape)
        for name, weight in meta["init"].items()
    }
    return MetaGradients(init=moved, hyper=tree.zeros_like(meta["hyper"])), metrics


@dataclass(frozen=True)
class Reptile:
    """theta - mean over tasks of theta_K (Nichol, Achiam, Schulman 2018, alg. 2).

    Not the gradient of the query loss. With outer SGD its learning rate is the paper's epsilon.
    """

    batching: Batching = "auto"
    precision: Precision = "fp32"

    def __call__(
        self, algo: "MetaAlgorithm", meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean direction over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, reptile, algo, meta, episodes)
