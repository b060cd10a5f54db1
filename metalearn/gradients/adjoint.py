"""The exact meta-gradient by walking the inner loop back, one step at a time.

Forward, only the weights theta_0 ... theta_K are kept. Then, for gradient descent,

    lambda_K = grad L_query(theta_K)
    lambda_k = lambda_{k+1} - alpha * H(theta_k) lambda_{k+1},   k = K-1, ..., 0

with H the Hessian of the inner loss, met only in products with a vector. lambda_0 is the
meta-gradient, and -<grad L_support(theta_k), lambda_{k+1}> that of the rate alpha of step k.
For any other rule, lambda passes through the rule's own derivative before it meets H. Where the
algorithm weighs the query loss of several steps, w_k grad L_query(theta_k) joins lambda_k.

Memory is that of one step's second-order graph, whatever K, and one copy of the fast weights
a step. The last step is differentiated together with the outer loss, so nothing of it is redone.
Pontryagin's adjoint for a discrete system; Maclaurin, Duvenaud, Adams 2015 walk the
same way back, re-running the dynamics instead of keeping the weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from metalearn import tree
from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.gradients.steps import (
    Cotangent,
    first_step,
    first_step_back,
    last_step_gradient,
    next_step,
    only_step_gradient,
    passing_gradient,
    start_gradient,
    step_back,
)
from metalearn.inner.loop import detached_gradient
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Kind, Meta, MetaGradients


@dataclass(frozen=True)
class Adjoint:
    """The exact second-order meta-gradient in the memory of a single inner step."""

    kind: ClassVar[Kind] = "exact"
    hessian_products: ClassVar[bool] = True
    __call__ = plain_loop

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task's outer loss, shaped like `meta`, and its metrics."""
        last, number = algo.steps, run.numbers(algo.steps, task)
        weighted = algo.step_weights(meta) is not None
        if last < 2:
            piece, *rest = (only_step_gradient, number[0]) if last else (start_gradient,)
            (d_init, d_hyper), metrics = run(piece, algo, meta, task, *rest)
        else:
            path = [run(first_step, algo, meta, task, number[0], gradient=detached_gradient)]
            for k in range(1, last - 1):
                path.append(
                    run(next_step, algo, meta, *path[-1], task, number[k],
                        gradient=detached_gradient)
                )  # fmt: skip

            (d_init, d_hyper, later), metrics = run(
                last_step_gradient, algo, meta, *path[-1], task, number[last - 1]
            )
            for k in reversed(range(1, last)):
                fast, state = path.pop()
                if k < last - 1:
                    from_init, from_hyper, later = run(
                        step_back, algo, meta, fast, state, task, number[k], later,
                        forward_over_reverse=run.forward_over_reverse,
                    )  # fmt: skip
                    d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)
                if weighted:
                    from_init, from_hyper, d_fast = run(
                        passing_gradient, algo, meta, fast, task, number[k]
                    )
                    d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)
                    later = Cotangent(tree.add(later.fast, d_fast), later.state)

            from_init, from_hyper = run(
                first_step_back, algo, meta, task, number[0], later,
                forward_over_reverse=run.forward_over_reverse,
            )  # fmt: skip
            d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)
        if weighted and last:
            (from_init, from_hyper), _ = run(start_gradient, algo, meta, task)
            d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)
        return MetaGradients(init=d_init, hyper=d_hyper), metrics
