"""Bootstrapped meta-gradients: learn to be, after K steps, where more steps would have led.

    target = theta_{K+L}: L - 1 more inner steps, then one of the query loss, held constant
    min over meta of  mean over queries of  KL(p(y | x, target) | p(y | x, theta_K))     (section 4)

so that the meta-gradient sees past its K steps, and the curvature of the query loss's own scale
does not matter. For real targets the distance is the mean squared error of the two outputs.

Flennerhag, Schroecker, Zahavy, van Hasselt, Silver, Singh: Bootstrapped Meta-Learning, 2022.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metalearn import tree
from metalearn.algorithms.losses import mean
from metalearn.backbones.norms import describe
from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError
from metalearn.functional.autodiff import gradient_at
from metalearn.functional.precision import outer_pass, outer_scale
from metalearn.gradients.steps import meta_gradient, query_loss
from metalearn.inner.loop import detached_gradient, dropping, inner_step, trajectory
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import State
from metalearn.types import (
    Batch,
    GradientAndMetrics,
    Kind,
    Meta,
    Metrics,
    Outputs,
    Params,
)


def outputs(algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task) -> Outputs:
    """Of the queries, after K inner steps."""
    with outer_pass(), dropping(task.seed, -1):
        return algo.predict(meta, algo.finish(meta, fast, task.given, algo.steps), task.query.x)


def target(
    algo: MetaAlgorithm, meta: Meta, fast: Params, state: State, task: Task, more: int, rate: float
) -> Tensor:
    """The queries' outputs at theta_{K+L}, from theta_K."""
    for step in range(algo.steps, algo.steps + more - 1):
        given = task.given
        fast, state = inner_step(algo, meta, fast, state, given, step, task.seed, detached_gradient)
    (grads,) = gradient_at(lambda fast: query_loss(algo, meta, fast, task, algo.steps)[0], fast)
    last = tree.add(fast, tree.scale(grads, -rate / outer_scale()))
    return outputs(algo, meta, last, task)


def distance(wanted: Tensor, got: Tensor, query: Batch) -> Tensor:
    """The mean over queries of KL(wanted | got) of logits; of real targets the squared error."""
    if query.labels.is_floating_point():
        return mean((wanted - got).square().flatten(1).mean(1), query.weight)
    log_p, log_q = wanted.log_softmax(1), got.log_softmax(1)
    return mean((log_p.exp() * (log_p - log_q)).sum(1), query.weight)


def bootstrapped(
    algo: MetaAlgorithm, meta: Meta, task: Task, more: int, rate: float
) -> GradientAndMetrics:
    """One task: the gradient of the distance to the target, and the metrics at theta_K."""
    constant = tree.map_meta(torch.Tensor.detach, meta)

    def objective(full: Meta) -> tuple[Tensor, Metrics]:
        *_, (fast, state) = trajectory(algo, full, task.given, algo.steps, task.seed)
        end = tree.detach(fast), tree.detach(state)
        wanted = target(algo, constant, *end, task, more, rate).detach()
        apart = distance(wanted, outputs(algo, full, fast, task), task.query)
        return apart * outer_scale(), query_loss(algo, full, fast, task, algo.steps)[1]

    return meta_gradient(objective, meta)


@dataclass(frozen=True)
class Bootstrapped:
    """The gradient of the distance to a target `more` steps ahead.

    more: L, 1 or more. rate: of the target's last step, along the query loss; above 0.
    Raises UsageError, also for an algorithm that weighs the query loss of every step, and for
    padded queries that see one another in transductive batch norm.
    """

    more: int = 5
    rate: float = 0.1
    kind: ClassVar[Kind] = "surrogate"
    __call__ = plain_loop

    def __post_init__(self) -> None:
        if self.more < 1 or not 0 < self.rate < math.inf:
            told = f"gradient.more={self.more} must be 1 or more"
            raise UsageError(f"{told}, and gradient.rate={self.rate} above 0")

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task, shaped like `meta`, and the metrics at theta_K."""
        if algo.step_weights(meta) is not None:
            raise UsageError(
                "gradient=bootstrapped knows the end of the inner loop alone, and this algorithm "
                "weighs the query loss of every step; use algorithm.multi_step=0"
            )
        if task.query.weight is not None and "transductive" in describe(algo.net.module):
            raise UsageError(
                "gradient=bootstrapped cannot leave padding out of transductive batch norm; use "
                "backbone.norm=support"
            )
        return run(bootstrapped, algo, meta, task, more=self.more, rate=self.rate)
