"""Inner rules: the optimizer of the inner loop as pure functions of one task's weights.

A rule is differentiable in everything it is given, so that a strategy can carry the
meta-gradient through it: to the starting weights, and to the rates where these are learned.
Every rule takes the same three options, and gets them from `complete`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError, check_whole
from metalearn.types import Kind, Params

State = Params
"""What a rule remembers between steps: float tensors only, so that it can be differentiated."""


class InnerRule(NamedTuple):
    """One task's optimizer.

    init: fast weights to the state before the first step.
    update: `(grads, state, fast, hyper) -> (updates, state)`; the next weights are
        `fast + updates`.
    hyper: `(fast, steps) ->` starting values of the tensors that the rule learns (may be none).
    batch_size: None for the whole support set in every step; n takes the examples n at a time,
        in order and starting over at the end (Reptile's inner minibatches).
    """

    init: Callable[[Params], State]
    update: Callable[[Params, State, Params, Params], tuple[Params, State]]
    hyper: Callable[[Params, int], Params]
    batch_size: int | None = None


def no_state(fast: Params) -> State:
    """The state of a rule that remembers nothing."""
    return {}


def no_hyper(fast: Params, steps: int) -> Params:
    """The learned tensors of a rule that learns none."""
    return {}


def with_prefix(prefix: str, tensors: Params) -> Params:
    """`tensors`, each name behind `prefix.`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Params) -> Params:
    """Those of `tensors` whose names stand behind `prefix.`, under the names alone."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def first_step(fast: Params) -> State:
    """A counter of the steps taken, in the weights' type and on their device."""
    return {"step": next(iter(fast.values())).new_zeros(())}


def at_step(values: Tensor, step: int | Tensor) -> Tensor:
    """`values[step]` of one value for each inner step, `[K, ...]`; the last one for later steps.

    step: an int, or an int64 scalar as compiled and vmapped steps have it.
    """
    if isinstance(step, int):
        return values[min(step, len(values) - 1)]
    return values.index_select(0, step.clamp(max=len(values) - 1).view(1)).squeeze(0)


def check_not_negative(**values: float) -> None:
    """Raise UsageError for a value below 0 or not finite."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"inner.{name}={value} must be 0 or more, and finite")


def check_positive(**values: float) -> None:
    """Raise UsageError for a value that is not above 0 or not finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"inner.{name}={value} must be above 0, and finite")


def check_fraction(**values: float) -> None:
    """Raise UsageError for a value outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UsageError(f"inner.{name}={value} must be 0 or more and below 1")


def with_weight_decay(rule: InnerRule, weight_decay: float) -> InnerRule:
    """`rule` along grad + weight_decay * theta, the coupled decay of torch.optim."""

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return rule.update(tree.add(grads, tree.scale(fast, weight_decay)), state, fast, hyper)

    return rule._replace(update=update)


def with_clipping(rule: InnerRule, clip_norm: float) -> InnerRule:
    """`rule` along grad * min(1, clip_norm / (|grad| + 1e-6)), the norm being over all weights.

    As `torch.nn.utils.clip_grad_norm_`, but with finite derivatives at a zero gradient too.
    Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2013,
    algorithm 1.
    """

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        squared = torch.stack([grad.square().sum() for grad in grads.values()]).sum()
        long = squared.sqrt() + 1e-6 > clip_norm
        # A short gradient is left alone, so the root, which has no derivative at 0, is kept
        # away from it; choosing between the two factors alone would give 0 * inf.
        norm = torch.where(long, squared, 1.0).sqrt()
        factor = torch.where(long, clip_norm / (norm + 1e-6), 1.0)
        return rule.update(tree.map(lambda grad: grad * factor, grads), state, fast, hyper)

    return rule._replace(update=update)


def complete(
    rule: InnerRule, weight_decay: float = 0.0, clip_norm: float | None = None
) -> InnerRule:
    """`rule` with what all rules offer: the gradient is clipped, then joined by the decay.

    weight_decay: 0 for none. clip_norm: None for no clipping. Raises UsageError for values
    that cannot be, `rule.batch_size` among them.
    """
    check_not_negative(weight_decay=weight_decay)
    if rule.batch_size is not None:
        check_whole("inner.batch_size", rule.batch_size, 1)
    if weight_decay:
        rule = with_weight_decay(rule, weight_decay)
    if clip_norm is not None:
        check_positive(clip_norm=clip_norm)
        rule = with_clipping(rule, clip_norm)
    return rule


def check_minimum(rule: InnerRule, kind: Kind | None) -> None:
    """Raise UsageError for a rule that moves a weight where the gradient is 0, as by weight decay,
    and a strategy of `kind` that asks for the minimum of the inner loss."""
    if kind == "implicit":
        at = {"weight": torch.ones(1, 1)}
        updates, _ = rule.update(tree.zeros_like(at), rule.init(at), at, rule.hyper(at, 1))
        if updates["weight"].any():
            raise UsageError(
                "gradient=implicit is that of the inner loss's minimum, and an inner rule with "
                "weight decay ends elsewhere; use inner=sgd, inner.weight_decay=0"
            )


def sgd(
    rate: float,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """Gradient descent with a fixed rate: theta <- theta - rate * grad (MAML, eq. 1)."""
    check_not_negative(rate=rate)

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        return tree.scale(grads, -rate), state

    return complete(InnerRule(no_state, update, no_hyper, batch_size), weight_decay, clip_norm)


def momentum(
    rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    dampening: float = 0.0,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> InnerRule:
    """Gradient descent with momentum, or with Nesterov's, as torch.optim.SGD has them.

        b <- momentum * b + (1 - dampening) * grad,   b = grad in the first step
        theta <- theta - rate * b,   with nesterov: theta - rate * (grad + momentum * b)

    State: `buffer.<weight>`, and `step`. Raises UsageError for Nesterov's with dampening, or
    without momentum.

    Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep
    learning, 2013, section 2.
    """
    check_not_negative(rate=rate)
    check_fraction(momentum=momentum, dampening=dampening)
    if nesterov and (dampening or not momentum):
        raise UsageError("inner.nesterov=true needs inner.dampening=0 and inner.momentum above 0")

    def init(fast: Params) -> State:
        return {**with_prefix("buffer", tree.zeros_like(fast)), **first_step(fast)}

    def update(grads: Params, state: State, fast: Params, hyper: Params) -> tuple[Params, State]:
        step = state["step"].detach()
        kept = tree.scale(under_prefix("buffer", state), momentum)
        share = 1 - dampening * step.clamp(max=1)
        buffer = tree.add(kept, tree.map(lambda grad: grad * share, grads))
        along = tree.add(grads, tree.scale(buffer, momentum)) if nesterov else buffer
        return tree.scale(along, -rate), {**with_prefix("buffer", buffer), "step": step + 1}

    return complete(InnerRule(init, update, no_hyper, batch_size), weight_decay, clip_norm)
