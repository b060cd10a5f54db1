"""The first-order approximation: the inner gradients count as constants."""

from dataclasses import dataclass
from typing import ClassVar

from metalearn.engine.batching import over_tasks
from metalearn.engine.strategy import Batching, Capture
from metalearn.engine.task import Run, Task
from metalearn.functional.precision import Precision
from metalearn.gradients.truncated import truncated
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Kind, Meta, MetaGradients, Metrics


def first_order(algo: MetaAlgorithm, meta: Meta, task: Task, run: Run):
    """One task: the unrolled gradient without any second derivative."""
    return run(truncated, algo, meta, task, last=0)


@dataclass(frozen=True)
class FirstOrder:
    """FOMAML: d theta_K / d theta = 1. Learned inner rates still get their gradient.

    Finn, Abbeel, Levine 2017, section 5.2; Nichol, Achiam, Schulman 2018, eq. 8.
    """

    batching: Batching = "loop"
    precision: Precision = "fp32"
    capture: Capture = "none"
    kind: ClassVar[Kind] = "truncated"

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, first_order, algo, meta, episodes)
