"""The pieces that strategies are made of: pure functions of one task's tensors.

A strategy says in which order they run; `Run` says how: as they stand, over T tasks at once
under `vmap`, or compiled. Each takes its derivatives inside, so that nothing outside needs a
graph, and a compiled piece is as exact as the function it was traced from.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.func import grad, vjp

from metalearn import tree
from metalearn.engine.task import Run, Task
from metalearn.functional.autodiff import derivative_along, gradient_at
from metalearn.functional.precision import inner_pass, outer_pass
from metalearn.inner.loop import (
    InnerGradient,
    apply_rule,
    begun,
    detached_gradient,
    dropping,
    inner_gradient,
    inner_step,
    minibatch,
)
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import State, at_step
from metalearn.types import GradientAndMetrics, Meta, MetaGradients, Metrics, Params


def query_loss(
    algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task, step: int | Tensor
) -> tuple[Tensor, Metrics]:
    """The (scaled) query loss after `step` inner steps, and the metrics.

    Where the algorithm weighs steps, the loss has the weight of this one.
    """
    with outer_pass() as scale, dropping(task.seed, step - algo.steps - 1):
        fast = algo.finish(meta, fast, task.given, step)
        loss, metrics = algo.outer_loss(meta, fast, task.query)
    weights = algo.step_weights(meta)
    return (loss if weights is None else loss * at_step(weights, step)) * scale, metrics


def first_step(
    algo: MetaAlgorithm,
    meta: Meta,
    task: Task,
    step: Tensor,
    gradient: InnerGradient = inner_gradient,
) -> tuple[Params, State]:
    """The fast weights and the rule's state after inner step 0, in which all tasks still share
    their weights: under `vmap` the convolutions of this step are those of one large batch."""
    fast = begun(algo, meta, task.given)
    state = algo.rule.init(fast)
    return inner_step(algo, meta, fast, state, task.given, step, task.seed, gradient)


def next_step(
    algo: MetaAlgorithm,
    meta: Meta,
    fast: Params,
    state: State,
    task: Task,
    step: Tensor,
    gradient: InnerGradient = inner_gradient,
) -> tuple[Params, State]:
    """The fast weights and the rule's state after one more inner step."""
    return inner_step(algo, meta, fast, state, task.given, step, task.seed, gradient)


def adapted(algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> tuple[Params, State]:
    """The fast weights and the rule's state after all inner steps, detached; not a piece, but of
    pieces."""
    *numbers, _ = run.numbers(algo.steps, task)
    fast, state = run(first_step, algo, meta, task, numbers[0], gradient=detached_gradient)
    for number in numbers[1:]:
        given = fast, state, task, number
        fast, state = run(next_step, algo, meta, *given, gradient=detached_gradient)
    return fast, state


def query_metrics(algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task) -> Metrics:
    """The metrics of the queries after the last inner step."""
    return query_loss(algo, meta, fast, task, algo.steps)[1]


def meta_gradient(
    objective: Callable[[Meta], tuple[Tensor, Metrics]], meta: Meta
) -> GradientAndMetrics:
    """The gradient of `objective` for all of `meta` that is learned, and its metrics."""

    def of(learned: MetaGradients) -> tuple[Tensor, Metrics]:
        return objective(Meta(**learned, buffers=meta["buffers"]))

    learned = MetaGradients(init=meta["init"], hyper=meta["hyper"])
    (gradients,), metrics = gradient_at(of, learned, has_aux=True)
    return gradients, metrics


class Cotangent(NamedTuple):
    """The gradient of the outer loss for the fast weights and the rule's state of a step."""

    fast: Params
    state: State


def start_gradient(
    algo: MetaAlgorithm, meta: Meta, task: Task
) -> tuple[tuple[Params, Params], Metrics]:
    """The gradient of the query loss before any inner step, for init and hyper."""

    def loss(init: Params, hyper: Params) -> tuple[Tensor, Metrics]:
        learned = _meta(meta, init, hyper)
        return query_loss(algo, learned, begun(algo, learned, task.given), task, 0)

    return gradient_at(loss, meta["init"], meta["hyper"], has_aux=True)


def only_step_gradient(
    algo: MetaAlgorithm, meta: Meta, task: Task, step: Tensor
) -> tuple[tuple[Params, Params], Metrics]:
    """The gradient of the query loss after the only inner step, for init and hyper."""

    def loss(init: Params, hyper: Params) -> tuple[Tensor, Metrics]:
        learned = _meta(meta, init, hyper)
        return query_loss(algo, learned, first_step(algo, learned, task, step)[0], task, 1)

    return gradient_at(loss, meta["init"], meta["hyper"], has_aux=True)


def last_step_gradient(
    algo: MetaAlgorithm, meta: Meta, fast: Params, state: State, task: Task, step: Tensor
) -> tuple[tuple[Params, Params, Cotangent], Metrics]:
    """The gradient of the query loss after the last inner step, for init, hyper and what stood
    before that step: its own way back is part of the piece, and its forward pass is not redone."""

    def loss(init: Params, hyper: Params, before: Cotangent) -> tuple[Tensor, Metrics]:
        learned = _meta(meta, init, hyper)
        after = next_step(algo, learned, *before, task, step)[0]
        return query_loss(algo, learned, after, task, algo.steps)

    before = Cotangent(fast, state)
    return gradient_at(loss, meta["init"], meta["hyper"], before, has_aux=True)


def passing_gradient(
    algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task, step: Tensor
) -> tuple[Params, Params, Params]:
    """The gradient of the query loss after `step` inner steps, of which it is not the last, for
    init, hyper and the fast weights there."""

    def loss(init: Params, hyper: Params, fast: Params) -> Tensor:
        return query_loss(algo, _meta(meta, init, hyper), fast, task, step)[0]

    return gradient_at(loss, meta["init"], meta["hyper"], fast)  # type: ignore[return-value]


def step_back(
    algo: MetaAlgorithm,
    meta: Meta,
    fast: Params,
    state: State,
    task: Task,
    step: Tensor,
    later: Cotangent,
    forward_over_reverse: bool = False,
) -> tuple[Params, Params, Cotangent]:
    """From the cotangent after a step to the one before it, and what the step adds to the
    gradients of init and hyper.

    forward_over_reverse: take the Hessian-vector product so, not reverse over reverse.
    """
    learned = meta["init"], meta["hyper"], fast

    def gradient(init: Params, hyper: Params, fast: Params) -> Params:
        given = minibatch(task.given, algo.rule.batch_size, step)
        with dropping(task.seed, step):
            return inner_gradient(algo, _meta(meta, init, hyper), fast, given, step)

    def rule(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return apply_rule(algo, grads, state, fast, _meta(meta, meta["init"], hyper))

    hessian_product = None
    if forward_over_reverse:
        grads = gradient(*learned)
    else:
        grads, hessian_product, *_ = vjp(gradient, *learned)
    _, through_rule, *_ = vjp(rule, grads, state, fast, meta["hyper"])
    vector, d_state, d_fast, d_hyper = through_rule((later.fast, later.state))
    if hessian_product is None:
        curved = _forward_product(algo, meta, fast, task, step, vector)
    else:
        curved = hessian_product(vector, retain_graph=False)
    d_hyper, d_fast = tree.add(d_hyper, curved[1]), tree.add(d_fast, curved[2])
    return curved[0], d_hyper, Cotangent(d_fast, d_state)


def _forward_product(
    algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task, step: Tensor, vector: Params
) -> tuple[Params, Params, Params]:
    """d <inner gradient, vector> / d (init, hyper, fast).

    The Hessian in all three is symmetric, so its product with (0, 0, vector) is the derivative
    of the whole gradient along that direction.
    """
    given = minibatch(task.given, algo.rule.batch_size, step)
    init, hyper = meta["init"], meta["hyper"]

    def gradients(init: Params, hyper: Params, fast: Params) -> tuple[Params, Params, Params]:
        def loss(init: Params, hyper: Params, fast: Params) -> Tensor:
            return algo.inner_loss(_meta(meta, init, hyper), fast, given, step) * scale

        return grad(loss, argnums=(0, 1, 2))(init, hyper, fast)

    with inner_pass() as scale, dropping(task.seed, step):
        still = tree.zeros_like(init), tree.zeros_like(hyper)
        products = derivative_along(gradients, (init, hyper, fast), (*still, vector))
    d_init, d_hyper, d_fast = (tree.scale(p, 1 / scale) for p in products)
    return d_init, d_hyper, d_fast


def first_step_back(
    algo: MetaAlgorithm,
    meta: Meta,
    task: Task,
    step: Tensor,
    later: Cotangent,
    forward_over_reverse: bool = False,
) -> tuple[Params, Params]:
    """What the first step, and the start before it, add to the gradients of init and hyper."""

    def begin(init: Params, hyper: Params) -> tuple[Params, State]:
        fast = algo.begin(_meta(meta, init, hyper), task.given)
        return fast, algo.rule.init(fast)

    (fast, state), through_begin = vjp(begin, meta["init"], meta["hyper"])[:2]
    from_init, from_hyper, earlier = step_back(
        algo, meta, fast, state, task, step, later, forward_over_reverse
    )
    d_init, d_hyper = through_begin(tuple(earlier))
    return tree.add(d_init, from_init), tree.add(d_hyper, from_hyper)


def _meta(meta: Meta, init: Params, hyper: Params) -> Meta:
    return Meta(init=init, hyper=hyper, buffers=meta["buffers"])
