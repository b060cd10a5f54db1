"""The one inner loop, for training and evaluation alike."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch.func import grad

from metalearn import tree
from metalearn.inner.rules import State
from metalearn.types import Batch, Meta, Params

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm

InnerGradient = Callable[["MetaAlgorithm", Meta, Params, Batch], Params]


def minibatch(support: Batch, size: int | None, step: int) -> Batch:
    """The `size` support examples of inner step `step`: in order, starting over at the end.

    Padding has no turn: a task takes the same examples in every batch that it is padded for.
    """
    x, y, weight = support
    if size is None or size >= len(x):
        return support
    places = torch.arange(size, device=x.device)
    if weight is None:
        rows = (places + step * size) % len(x)
        return Batch(x[rows], y[rows])
    padding = weight == 0
    real = (~padding).sum().clamp(min=1)
    rows = torch.argsort(padding.long(), stable=True)[(places + step * size) % real]
    return Batch(x[rows], y[rows], weight[rows] * (places < real))


def inner_gradient(algo: "MetaAlgorithm", meta: Meta, fast: Params, support: Batch) -> Params:
    """d inner_loss / d fast, itself differentiable."""
    return grad(algo.inner_loss, argnums=1)(meta, fast, support)


def apply_rule(
    algo: "MetaAlgorithm", grads: Params, state: State, fast: Params, hyper: Params
) -> tuple[Params, State]:
    """The weights and the rule's state after one step along `grads`."""
    updates, state = algo.rule.update(grads, state, fast, hyper)
    return tree.add(fast, updates), state


def trajectory(
    algo: "MetaAlgorithm",
    meta: Meta,
    support: Batch,
    steps: int,
    gradient: InnerGradient = inner_gradient,
) -> Iterator[tuple[Params, State]]:
    """The fast weights of one task and the rule's state after 0, 1, ..., `steps` inner steps."""
    fast = algo.begin(meta, support)
    state = algo.rule.init(fast)
    yield fast, state
    for step in range(steps):
        grads = gradient(algo, meta, fast, minibatch(support, algo.rule.batch_size, step))
        fast, state = apply_rule(algo, grads, state, fast, meta["hyper"])
        yield fast, state


def adapt(
    algo: "MetaAlgorithm",
    meta: Meta,
    support: Batch,
    steps: int | None = None,
    gradient: InnerGradient = inner_gradient,
) -> Params:
    """Adapt to one task: `steps` (default `algo.steps`) inner steps from `algo.begin`.

    support: `[S, *X]`, `[S]`, one task without T.
    gradient: how the inner gradient is taken; `FirstOrder` passes one without history.
    Returns the fast weights, ready for `algo.predict`; differentiable in `meta`.
    """
    count = algo.steps if steps is None else steps
    *_, (fast, _) = trajectory(algo, meta, support, count, gradient)
    return algo.finish(meta, fast, support)
