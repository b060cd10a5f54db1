"""Inner rules that divide each weight's step by the size of its past gradients.

Where torch.optim divides by sqrt(v) + epsilon, these divide by sqrt(v + epsilon^2): the same at
v = 0, never more than epsilon apart, but with a derivative there. That of sqrt(v) is infinite,
and a weight whose gradient is zero (a dead unit's) would make the whole meta-gradient NaN.
A step's derivative stays below about rate / epsilon: where rounding noise in tiny gradients
shows in the meta-gradient, a larger epsilon removes it.
"""

import math

import torch
from torch import Tensor

from metalearn import tree
from metalearn.inner.rules import (
    InnerRule,
    State,
    check_fraction,
    check_not_negative,
    check_positive,
    complete,
    first_step,
    no_hyper,
    under_prefix,
    with_prefix,
)
from metalearn.types import Params


def moving(average: Params, values: Params, keep: float) -> Params:
    """keep * average + (1 - keep) * values."""
    return tree.map(lambda a, v: torch.lerp(a, v, 1 - keep), average, values)


def weight_so_far(keep: float, step: Tensor) -> Tensor:
    """1 - keep^step, the weight of `step` values in an average that started at 0.

    By expm1, exact in float32 too where keep is near 1.
    """
    return -torch.expm1(step * (math.log(keep) if keep else -math.inf))


def adam(
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """Adam, with its epsilon under the root so that it can be differentiated at v = 0.

        m <- beta1 * m + (1 - beta1) * grad,   v <- beta2 * v + (1 - beta2) * grad^2
        theta <- theta - rate * m' / sqrt(v' + epsilon^2),   m' = m / (1 - beta1^t), v' alike

    beta1 = 0 is Reptile's inner Adam. epsilon: above 0, in units of the gradient.
    State: `mean.<weight>`, `square.<weight>` and `step`.

    Kingma, Ba: Adam: A Method for Stochastic Optimization, 2015, algorithm 1.
    """
    check_not_negative(rate=rate)
    check_fraction(beta1=beta1, beta2=beta2)
    check_positive(epsilon=epsilon)

    def init(fast: Params) -> State:
        zeros = tree.zeros_like(fast)
        return {**with_prefix("mean", zeros), **with_prefix("square", zeros), **first_step(fast)}

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        step = state["step"].detach() + 1
        mean = moving(under_prefix("mean", state), grads, beta1)
        square = moving(under_prefix("square", state), tree.map(torch.square, grads), beta2)
        weight1, weight2 = weight_so_far(beta1, step), weight_so_far(beta2, step)
        # m' / sqrt(v' + epsilon^2), with what divides m' brought under the root.
        scale, least = weight1**2 / weight2, (epsilon * weight1) ** 2
        along = tree.map(lambda m, v: m / torch.addcmul(least, v, scale).sqrt(), mean, square)
        state = {**with_prefix("mean", mean), **with_prefix("square", square), "step": step}
        return tree.scale(along, -rate), state

    return complete(InnerRule(init, update, no_hyper, batch_size), weight_decay, clip_norm)


def adamw(
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    batch_size: int | None = None,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
) -> InnerRule:
    """Adam with decoupled decay: theta <- theta - rate * weight_decay * theta - Adam's step.

    Arguments and state as of `adam`; the decay does not pass through Adam's averages.

    Loshchilov, Hutter: Decoupled Weight Decay Regularization, 2019, algorithm 2.
    """
    check_not_negative(weight_decay=weight_decay)
    rule = adam(rate, beta1, beta2, epsilon, batch_size, clip_norm=clip_norm)

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        updates, state = rule.update(grads, state, fast, hyper)
        return tree.add(updates, tree.scale(fast, -rate * weight_decay)), state

    return rule._replace(update=update)


def rmsprop(
    rate: float,
    alpha: float = 0.99,
    epsilon: float = 1e-8,
    momentum: float = 0.0,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """RMSprop, with its epsilon under the root so that it can be differentiated at v = 0.

        v <- alpha * v + (1 - alpha) * grad^2,   b <- momentum * b + grad / sqrt(v + epsilon^2)
        theta <- theta - rate * b

    epsilon: above 0, in units of the gradient. State: `square.<weight>`, `buffer.<weight>`.

    Tieleman, Hinton: Neural Networks for Machine Learning, 2012, lecture 6.5; the momentum is
    that of torch.optim.RMSprop.
    """
    check_not_negative(rate=rate)
    check_fraction(alpha=alpha, momentum=momentum)
    check_positive(epsilon=epsilon)

    def init(fast: Params) -> State:
        zeros = tree.zeros_like(fast)
        return {**with_prefix("square", zeros), **with_prefix("buffer", zeros)}

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        square = moving(under_prefix("square", state), tree.map(torch.square, grads), alpha)
        along = tree.map(lambda grad, v: grad / (v + epsilon**2).sqrt(), grads, square)
        buffer = tree.add(tree.scale(under_prefix("buffer", state), momentum), along)
        state = {**with_prefix("square", square), **with_prefix("buffer", buffer)}
        return tree.scale(buffer, -rate), state

    return complete(InnerRule(init, update, no_hyper, batch_size), weight_decay, clip_norm)
