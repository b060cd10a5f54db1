"""Reptile's direction, as a gradient that any outer optimizer can follow."""

from dataclasses import dataclass
from typing import ClassVar

from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError
from metalearn.gradients.steps import adapted, query_metrics
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Kind, Meta, MetaGradients, Params


def displacement(algo: MetaAlgorithm, meta: Meta, fast: Params) -> Params:
    """theta - theta_K, and 0 for what does not adapt."""
    return {
        name: weight - fast[name] if name in fast else weight.new_zeros(weight.shape)
        for name, weight in meta["init"].items()
    }


@dataclass(frozen=True)
class Displacement:
    """theta - mean over tasks of theta_K (Nichol, Achiam, Schulman 2018, alg. 2).

    Not the gradient of the query loss. With outer SGD its learning rate is the paper's epsilon.
    Raises UsageError where the rule learns rates, or where there are no inner steps.
    """

    kind: ClassVar[Kind] = "displacement"
    __call__ = plain_loop

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """One task: the way back from where the inner loop ends. Queries only measure."""
        if meta["hyper"]:
            raise UsageError("gradient Displacement learns no inner rates; use inner=sgd")
        if not algo.steps:
            raise UsageError("gradient Displacement needs algorithm.steps of 1 or more")
        fast, _ = adapted(algo, meta, task, run)
        moved = run(displacement, algo, meta, fast)
        return MetaGradients(init=moved, hyper={}), run(query_metrics, algo, meta, fast, task)
