"""The one inner loop, for training and evaluation alike."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.func import grad

from metalearn import tree
from metalearn.errors import UsageError, check_whole
from metalearn.functional.autodiff import gradient_at
from metalearn.functional.dropout import dropout_stream, fold
from metalearn.functional.masks import masked, masks_of
from metalearn.functional.precision import inner_pass
from metalearn.inner.labels import check_labels
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import State
from metalearn.types import Batch, Given, Meta, Params

InnerGradient = Callable[[MetaAlgorithm, Meta, Params, Given, int | Tensor], Params]
"""(algo, meta, fast, given, step) -> the gradient of the inner loss of that step for `fast`."""


def minibatch(given: Given, size: int | None, step: int | Tensor) -> Given:
    """`given` with the support examples of inner step `step` alone, as `_rows` chooses them."""
    return given if size is None else given._replace(support=_rows(given.support, size, step))


def _rows(support: Batch, size: int, step: int | Tensor) -> Batch:
    """The `size` support examples of inner step `step`: in order, starting over at the end.

    Padding has no turn: a task takes the same examples in every batch that it is padded for.
    """
    weight, count = support.weight, support.shape[0]
    if size >= count:
        return support
    places = torch.arange(size, device=support.device)
    if weight is None:
        rows = (places + step * size) % count
        return support.map(lambda t: t[rows])
    padding = weight == 0
    real = (~padding).sum().clamp(min=1)
    rows = torch.argsort(padding.long(), stable=True)[(places + step * size) % real]
    batch = support.map(lambda t: t[rows])
    return batch._replace(weight=weight[rows] * (places < real))


def inner_gradient(
    algo: MetaAlgorithm, meta: Meta, fast: Params, given: Given, step: int | Tensor
) -> Params:
    """d inner_loss / d fast, itself differentiable, in the precision set around it."""
    with inner_pass() as scale:
        grads = grad(lambda fast: algo.inner_loss(meta, fast, given, step) * scale)(fast)
    return grads if scale == 1 else tree.scale(grads, 1 / scale)


def detached_gradient(
    algo: MetaAlgorithm, meta: Meta, fast: Params, given: Given, step: int | Tensor
) -> Params:
    """`inner_gradient` as a constant, for steps that nobody differentiates. Its inputs are cut,
    and it keeps nothing of its own way back."""
    init, hyper = tree.detach(meta["init"]), tree.detach(meta["hyper"])
    constant = Meta(init=init, hyper=hyper, buffers=meta["buffers"])
    with inner_pass() as scale:

        def loss(fast: Params) -> Tensor:
            return algo.inner_loss(constant, fast, given, step) * scale

        (grads,) = gradient_at(loss, tree.detach(fast))
    return grads if scale == 1 else tree.scale(grads, 1 / scale)


def apply_rule(
    algo: MetaAlgorithm, grads: Params, state: State, fast: Params, meta: Meta
) -> tuple[Params, State]:
    """The weights and the rule's state after one step along `grads`; a pruned weight stays."""
    updates, state = algo.rule.update(grads, state, fast, meta["hyper"])
    return tree.add(fast, masked(updates, masks_of(meta["buffers"]))), state


def dropping(seed: Tensor | None, step: int | Tensor) -> AbstractContextManager[None]:
    """Around what a task computes in `step`: its dropout masks, where the task has a seed."""
    return nullcontext() if seed is None else dropout_stream(fold(seed, step))


def inner_step(
    algo: MetaAlgorithm,
    meta: Meta,
    fast: Params,
    state: State,
    given: Given,
    step: int | Tensor,
    seed: Tensor | None = None,
    gradient: InnerGradient = inner_gradient,
) -> tuple[Params, State]:
    """Step number `step` of the inner loop: the rule after the gradient of the inner loss."""
    with dropping(seed, step):
        grads = gradient(algo, meta, fast, minibatch(given, algo.rule.batch_size, step), step)
    return apply_rule(algo, grads, state, fast, meta)


def begun(algo: MetaAlgorithm, meta: Meta, given: Given) -> Params:
    """What the inner loop starts from. Raises UsageError where `begin` returns no dict."""
    fast = algo.begin(meta, given)
    if not isinstance(fast, dict):
        raise UsageError(
            f"{type(algo).__name__}.begin returned {type(fast).__name__}; return the fast weights, "
            "a dict of tensors, empty where nothing adapts"
        )
    return fast


def trajectory(
    algo: MetaAlgorithm,
    meta: Meta,
    given: Given,
    steps: int,
    seed: Tensor | None = None,
    gradient: InnerGradient = inner_gradient,
) -> Iterator[tuple[Params, State]]:
    """The fast weights of one task and the rule's state after 0, 1, ..., `steps` inner steps."""
    fast = begun(algo, meta, given)
    state = algo.rule.init(fast)
    yield fast, state
    for step in range(steps):
        fast, state = inner_step(algo, meta, fast, state, given, step, seed, gradient)
        yield fast, state


def adapt(
    algo: MetaAlgorithm,
    meta: Meta,
    given: Given | Batch,
    steps: int | None = None,
    seed: Tensor | None = None,
    gradient: InnerGradient = inner_gradient,
) -> Params:
    """Adapt to one task: `steps` (default `algo.steps`) inner steps from `algo.begin`.

    given: what one task, without T, may see: support `[S, *X]`, `[S]`, alone or with inputs
        without labels.
    seed: int64 scalar, of the task's dropout masks; None leaves them to torch's generator.
    gradient: how the inner gradient of a step is taken; `detached_gradient` where nobody
        differentiates what is returned.
    Returns the fast weights, ready for `algo.predict`; differentiable in `meta`. Raises UsageError
    for classes that are not 0 to N - 1, or a number of steps that is not whole.
    """
    if isinstance(given, Batch):
        given = Given(given)
    count = algo.steps if steps is None else steps
    check_whole("steps", count)
    check_labels(algo, given.support)
    *_, (fast, _) = trajectory(algo, meta, given, count, seed, gradient)
    return algo.finish(meta, fast, given, count)
