"""LITE: of a large support set, H random examples pass through the body with history, the others
without, so that memory follows H and the queries, not S.

    d L / d theta  ~  S / H * sum over i of H of  (d L / d f(x_i)) (d f(x_i) / d theta)
                      + sum over the queries q of  (d L / d f(x_q)) (d f(x_q) / d theta)

L and its derivatives for the features are those of the whole support set; only the sum over it is
drawn, so that over all draws of H the mean is the meta-gradient itself. That of the head, and of
what else is learned beside the body, is not drawn at all.

Bronskill, Massiceti, Patacchiola, Hofmann, Nowozin, Turner: Memory Efficient Meta-Learning with
Large Images, 2021, section 3.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from metalearn import tree
from metalearn.engine.execution import Execution
from metalearn.engine.frozen_body import (
    QUERY,
    SUPPORT,
    UNLABELLED,
    Body,
    ThroughFeatures,
    features,
    makes_the_whole,
)
from metalearn.engine.strategy import Strategy
from metalearn.engine.task import Task, TaskGradient, tasks_of
from metalearn.errors import UsageError, check_whole
from metalearn.functional import PureModule
from metalearn.functional.draws import random_bits
from metalearn.functional.dropout import fold
from metalearn.functional.module import without_padding
from metalearn.functional.precision import inner_pass, outer_pass
from metalearn.inner.loop import dropping
from metalearn.inner.protocol import MetaAlgorithm, on_features
from metalearn.types import (
    Batch,
    Episodes,
    GradientAndMetrics,
    Meta,
    MetaGradients,
    Params,
    map_tensors,
)

_DRAW = 2**40  # of a task's seed; its inner steps have smaller numbers
_TRIED = 8  # examples on which it is tried whether a network treats each by itself
_SAME = 1e-4  # of the largest feature


def drawn(seed: Tensor, support: Batch, kept: int) -> tuple[Tensor, Tensor]:
    """The rows `[min(kept, S)]` that keep their history, and what their gradients count, S / H.

    Padding is drawn last, and counts in neither S nor H: a task draws the same in every batch that
    it is padded for.
    """
    size = support.shape[0]
    order = random_bits(fold(seed, _DRAW), (size,))
    real = torch.full((), size, device=order.device)
    if support.weight is not None:
        order = torch.where(support.weight != 0, order, 2**32)
        real = (support.weight != 0).sum()
    return order.argsort()[:kept], real / real.clamp(1, kept)


def _real(batch: Batch) -> Batch:
    """Without weights, and with a copy of an example that counts in the place of padding."""
    if batch.weight is None:
        return batch
    x = map_tensors(partial(without_padding, batch.weight != 0), batch.x)
    return Batch(x, batch.y)


def _rows(batch: Batch, rows: Tensor | slice) -> Batch:
    return batch.map(lambda t: t[rows])


def lite(
    algo: MetaAlgorithm,
    meta: Meta,
    task: Task,
    body: Body,
    gradient: TaskGradient,
    kept: int,
    forward: bool,
) -> GradientAndMetrics:
    """One task, as one piece: `gradient` takes that of the head, for the features among others,
    which goes on to the body from the queries and from `kept` examples of the support set."""
    net, given = algo.net, task.given
    assert task.seed is not None
    support = _real(given.support)
    others = {QUERY: task.query, UNLABELLED: given.unlabelled}
    seen = {name: _real(batch) for name, batch in others.items() if batch is not None}

    def of_body(init: Params, batch: Batch) -> Tensor:
        return features(net, body.path, {**meta["buffers"], **init}, batch)

    # As many at once as pass with history elsewhere: more would take more memory than these do.
    many = max(kept, *(batch.shape[0] for batch in seen.values()))
    constant, starts = tree.detach(meta["init"]), range(0, support.shape[0], many)
    with inner_pass():
        parts = [of_body(constant, _rows(support, slice(i, i + many))) for i in starts]
    with outer_pass():
        found, back = vjp(
            lambda init: {name: of_body(init, batch) for name, batch in seen.items()}, meta["init"]
        )[:2]
    found = {SUPPORT: torch.cat(parts), **found}
    inner = Execution(forward_over_reverse=forward, fused=False)
    of_head, metrics = gradient(body, body.meta(meta, found), task, inner)
    d_init = of_head["init"]
    d_support = d_init.pop(SUPPORT)
    (total,) = back({name: d_init.pop(name) for name in seen}, retain_graph=False)
    del back  # the queries' history, before that of the support set

    rows, scale = drawn(task.seed, given.support, kept)
    with inner_pass():
        _, back = vjp(lambda init: of_body(init, _rows(support, rows)), meta["init"])[:2]
    (of_support,) = back(d_support[rows] * scale.to(d_support.dtype), retain_graph=False)
    total = tree.add(total, of_support)
    for name, d in d_init.items():
        total[name] = total[name] + d
    return MetaGradients(init=total, hyper=of_head["hyper"]), metrics


def check_kept(kept: int | None) -> None:
    """Raise UsageError for a number of examples that none could be."""
    if kept is not None:
        check_whole("lite", kept, 1)


def through_few(
    kept: int, strategy: Strategy, algo: MetaAlgorithm, meta: Meta, tasks: Task
) -> TaskGradient:
    """`strategy` with LITE of `kept` examples. Raises UsageError where that would be wrong: for a
    network that an inner step changes or that sees the support set more than once, or one whose
    features of an example depend on the others, or on a draw.

    tasks: any T; what the network does is tried on the first of them.
    """
    found, support = on_features(algo), tasks.given.support
    body = None if found is None or algo.rule.batch_size is not None else Body(*found)
    if body is None or not (body.path is None or makes_the_whole(algo, body, meta, support)):
        raise UsageError(
            f"lite={kept} is for a method whose network sees the support set once, and "
            f"{type(algo).__name__} does not; use algorithm=protonet, metric, r2d2 or anil, or "
            "lite=null"
        )
    if not _each_by_itself(algo.net, body.path, meta, support):
        raise UsageError(
            f"lite={kept} needs features of an example that do not depend on the others; use "
            "backbone.norm=group, frozen or none and no dropout, or lite=null"
        )
    return ThroughFeatures(body, strategy.task, lite, {"kept": kept})


def check_lite(
    kept: int | None, strategy: Any, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
) -> None:
    """Raise UsageError where `through_few` would, and for a gradient that is not taken through the
    whole task. kept: None for no LITE."""
    if kept is None:
        return
    kind = getattr(strategy, "kind", None)  # a user's own strategy may not say
    if kind not in ("exact", "truncated") or hasattr(strategy, "all_tasks"):
        raise UsageError(
            f"lite={kept} needs a gradient through the whole task, not {type(strategy).__name__}; "
            "use gradient=unroll or adjoint, or lite=null"
        )
    through_few(kept, strategy, algo, meta, tasks_of(algo, episodes))


@torch.no_grad()
def _each_by_itself(net: PureModule, path: str | None, meta: Meta, supports: Batch) -> bool:
    """Whether the features of an example are the same in a batch and alone, tried on the first."""
    batch = _rows(_real(supports.map(lambda t: t[0])), slice(_TRIED))
    weights = {**meta["buffers"], **meta["init"]}

    def found(batch: Batch, seed: int) -> Tensor:  # as every example draws by itself
        with dropping(torch.tensor(seed, device=batch.device), 0):
            return features(net, path, weights, batch)

    together = found(batch, 0)
    alone = [found(_rows(batch, slice(i, i + 1)), i + 1) for i in range(len(together))]
    return bool((together - torch.cat(alone)).abs().max() <= _SAME * together.abs().max())
