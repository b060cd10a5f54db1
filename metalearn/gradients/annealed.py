"""One strategy in the first meta-steps, another after them: from first to second order.

Antoniou, Edwards, Storkey: How to train your MAML, 2019, section 4 (DA): the first-order gradient
in the first 50 of 100 epochs costs less, and leads to fewer exploding gradients later.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from metalearn.engine import plain_loop
from metalearn.engine.strategy import Strategy
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError
from metalearn.gradients.adjoint import Adjoint
from metalearn.gradients.truncated import FirstOrder
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Kind, Meta


@dataclass(frozen=True)
class Annealed:
    """`first` in the first `meta_steps` steps of the outer loop, then `then`, which it is where no
    step is named. Raises UsageError for fewer than 0 steps."""

    meta_steps: int = 25000
    first: Strategy = field(default_factory=FirstOrder)
    then: Strategy = field(default_factory=Adjoint)
    kind: ClassVar[Kind] = "exact"
    hessian_products: ClassVar[bool] = True
    __call__ = plain_loop

    def __post_init__(self) -> None:
        if self.meta_steps < 0:
            raise UsageError(f"gradient.meta_steps={self.meta_steps} must be 0 or more")

    def at(self, meta_step: int) -> Strategy:
        """The strategy of meta-step `meta_step`, counted from 1."""
        return self.first if meta_step <= self.meta_steps else self.then

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """What `then` computes."""
        return self.then.task(algo, meta, task, run)
