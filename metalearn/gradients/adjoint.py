"""The exact meta-gradient by walking the inner loop back, one step at a time.

Forward, only the weights theta_0 ... theta_K are kept. Then, for gradient descent,

    lambda_K = grad L_query(theta_K)
    lambda_k = lambda_{k+1} - alpha * H(theta_k) lambda_{k+1},   k = K-1, ..., 0

with H the Hessian of the inner loss, met only in products with a vector. lambda_0 is the
meta-gradient, and -<grad L_support(theta_k), lambda_{k+1}> that of the rate alpha of step k.
For any other rule, lambda passes through the rule's own derivative before it meets H.

Memory is that of one step's second-order graph, whatever K, and one copy of the fast weights
a step. Pontryagin's adjoint for a discrete system; Maclaurin, Duvenaud, Adams 2015 walk the
same way back, re-running the dynamics instead of keeping the weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.func import grad, vjp

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.gradients.base import Batching, Precision
from metalearn.gradients.batching import over_tasks
from metalearn.inner.loop import apply_rule, inner_gradient, minibatch, trajectory
from metalearn.types import Episodes, Meta, MetaGradients, Metrics, Params

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm


def adjoint(algo: "MetaAlgorithm", meta: Meta, episodes: Episodes) -> tuple[MetaGradients, Metrics]:
    """One task: the gradient of `outer_loss(adapt(meta))`."""
    support, query = episodes
    init, hyper = meta["init"], meta["hyper"]

    def with_meta(init: Params, hyper: Params) -> Meta:
        return Meta(init=init, hyper=hyper, buffers=meta["buffers"])

    *steps, (last, last_state) = trajectory(algo, meta, support, algo.steps)

    def judged(init: Params, hyper: Params, fast: Params) -> tuple[Tensor, Metrics]:
        meta = with_meta(init, hyper)
        return algo.outer_loss(meta, algo.finish(meta, fast, support), query)

    (d_init, d_hyper, adjoint), metrics = grad(judged, argnums=(0, 1, 2), has_aux=True)(
        init, hyper, last
    )
    adjoint_state = tree.zeros_like(last_state)

    for step, (fast, state) in reversed(list(enumerate(steps))):
        batch = minibatch(support, algo.rule.batch_size, step)

        def gradient(init: Params, hyper: Params, fast: Params, batch=batch) -> Params:
            return inner_gradient(algo, with_meta(init, hyper), fast, batch)

        def rule(grads: Params, state: Params, fast: Params, hyper: Params):
            return apply_rule(algo, grads, state, fast, hyper)

        grads, hessian_product, *_ = vjp(gradient, init, hyper, fast)
        _, through_rule, *_ = vjp(rule, grads, state, fast, hyper)

        vector, adjoint_state, direct, from_rule = through_rule((adjoint, adjoint_state))
        from_init, from_hyper, curved = hessian_product(vector)

        adjoint = tree.add(direct, curved)
        d_init = tree.add(d_init, from_init)
        d_hyper = tree.add(d_hyper, tree.add(from_rule, from_hyper))

    def begin(init: Params, hyper: Params) -> tuple[Params, Params]:
        fast = algo.begin(with_meta(init, hyper), support)
        return fast, algo.rule.init(fast)

    from_init, from_hyper = vjp(begin, init, hyper)[1]((adjoint, adjoint_state))
    d_init, d_hyper = tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)
    return MetaGradients(init=d_init, hyper=d_hyper), metrics


def check_repeatable(algo: "MetaAlgorithm") -> None:
    """Raise UsageError for a network that drops units: its second pass would drop others."""
    for module in algo.net.module.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p:
            raise UsageError(
                "gradient Adjoint runs every inner step twice, and dropout would differ; "
                "use Unroll or call eval() on the dropout layers"
            )


@dataclass(frozen=True)
class Adjoint:
    """The exact second-order meta-gradient in the memory of a single inner step.

    Raises UsageError where the network has dropout in train mode.
    """

    batching: Batching = "auto"
    precision: Precision = "fp32"

    def __call__(
        self, algo: "MetaAlgorithm", meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        check_repeatable(algo)
        return over_tasks(self, adjoint, algo, meta, episodes)
