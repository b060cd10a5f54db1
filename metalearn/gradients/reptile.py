"""Reptile's direction, as a gradient that any outer optimizer can follow."""

from dataclasses import dataclass
from typing import ClassVar

from metalearn.engine.batching import over_tasks
from metalearn.engine.strategy import Batching, Capture
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError
from metalearn.functional.precision import Precision
from metalearn.gradients.steps import adapted, measure
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Kind, Meta, MetaGradients, Metrics, Params


def displacement(algo: MetaAlgorithm, meta: Meta, fast: Params) -> Params:
    """theta - theta_K, and 0 for what does not adapt."""
    return {
        name: weight - fast[name] if name in fast else weight.new_zeros(weight.shape)
        for name, weight in meta["init"].items()
    }


def reptile(algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> tuple[MetaGradients, Metrics]:
    """One task: the way back from where the inner loop ends. Queries only measure."""
    if meta["hyper"]:
        raise UsageError("Reptile learns no inner rates; use inner=sgd")
    if not algo.steps:
        raise UsageError("gradient Reptile needs algorithm.steps of 1 or more")
    fast, _ = adapted(algo, meta, task, run)
    moved = run(displacement, algo, meta, fast)
    return MetaGradients(init=moved, hyper={}), run(measure, algo, meta, fast, task)


@dataclass(frozen=True)
class Reptile:
    """theta - mean over tasks of theta_K (Nichol, Achiam, Schulman 2018, alg. 2).

    Not the gradient of the query loss. With outer SGD its learning rate is the paper's epsilon.
    """

    batching: Batching = "loop"
    precision: Precision = "fp32"
    capture: Capture = "none"
    kind: ClassVar[Kind] = "displacement"

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean direction over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, reptile, algo, meta, episodes)
