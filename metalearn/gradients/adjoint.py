"""The exact meta-gradient by walking the inner loop back, one step at a time.

Forward, only the weights theta_0 ... theta_K are kept. Then, for gradient descent,

    lambda_K = grad L_query(theta_K)
    lambda_k = lambda_{k+1} - alpha * H(theta_k) lambda_{k+1},   k = K-1, ..., 0

with H the Hessian of the inner loss, met only in products with a vector. lambda_0 is the
meta-gradient, and -<grad L_support(theta_k), lambda_{k+1}> that of the rate alpha of step k.
For any other rule, lambda passes through the rule's own derivative before it meets H.

Memory is that of one step's second-order graph, whatever K, and one copy of the fast weights
a step. The last step is differentiated together with the outer loss, so nothing of it is redone.
Pontryagin's adjoint for a discrete system; Maclaurin, Duvenaud, Adams 2015 walk the
same way back, re-running the dynamics instead of keeping the weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from metalearn import tree
from metalearn.engine.batching import over_tasks
from metalearn.engine.strategy import Batching, Capture
from metalearn.engine.task import Run, Task
from metalearn.functional.precision import Precision
from metalearn.gradients.steps import (
    first_step,
    first_step_back,
    judge_first_step,
    judge_last_step,
    judge_start,
    next_step,
    step_back,
)
from metalearn.inner.loop import without_history
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Kind, Meta, MetaGradients, Metrics


def adjoint(algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> tuple[MetaGradients, Metrics]:
    """One task: the gradient of `outer_loss(adapt(meta))`."""
    step = run.numbers(algo.steps, task)
    if algo.steps < 2:
        piece, *number = (judge_first_step, step[0]) if algo.steps else (judge_start,)
        (d_init, d_hyper), metrics = run(piece, algo, meta, task, *number)
        return MetaGradients(init=d_init, hyper=d_hyper), metrics

    path = [run(first_step, algo, meta, task, step[0], gradient=without_history)]
    for k in range(1, algo.steps - 1):
        path.append(run(next_step, algo, meta, *path[-1], task, step[k], gradient=without_history))

    (d_init, d_hyper, later), metrics = run(
        judge_last_step, algo, meta, *path.pop(), task, step[algo.steps - 1]
    )
    for k in reversed(range(1, algo.steps - 1)):
        from_init, from_hyper, later = run(
            step_back, algo, meta, *path.pop(), task, step[k], later, forward=run.forward
        )
        d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)

    from_init, from_hyper = run(
        first_step_back, algo, meta, task, step[0], later, forward=run.forward
    )
    d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)
    return MetaGradients(init=d_init, hyper=d_hyper), metrics


@dataclass(frozen=True)
class Adjoint:
    """The exact second-order meta-gradient in the memory of a single inner step."""

    batching: Batching = "loop"
    precision: Precision = "fp32"
    capture: Capture = "none"
    kind: ClassVar[Kind] = "exact"
    hessian_products: ClassVar[bool] = True

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        return over_tasks(self, adjoint, algo, meta, episodes)
