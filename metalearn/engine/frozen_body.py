"""Where the head alone adapts, the rest of the network is a function of the inputs that no inner
step changes: it is computed once a task, and the inner loop runs on its features.

    F_s, F_q = body(x_support), body(x_query)
    d L / d body = (d L / d F_s) (d F_s / d body) + (d L / d F_q) (d F_q / d body)

with L the query loss after K steps of the head, differentiated by any strategy, to which the
features of a task are tensors like those that are learned. Raghu et al. 2020 (ANIL), section 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from metalearn.engine.execution import Execution
from metalearn.engine.task import Run, Task, TaskGradient
from metalearn.functional import PureModule
from metalearn.functional.masks import MASK
from metalearn.functional.outputs import tensor_of
from metalearn.functional.precision import inner_pass, outer_pass
from metalearn.inner.around import Around
from metalearn.inner.loop import dropping
from metalearn.inner.protocol import MetaAlgorithm, on_features
from metalearn.types import (
    META_STEP,
    Batch,
    Given,
    GradientAndMetrics,
    Inputs,
    Meta,
    MetaGradients,
    Metrics,
    Outputs,
    Params,
)

# No weight has such a name.
SUPPORT, QUERY = "features of the support", "features of the query"
UNLABELLED = "features of what has no labels"
_SAME = 1e-4  # of the largest output


@dataclass(frozen=True, eq=False)
class Body(Around):
    """An algorithm that runs on features, which stand in `meta["init"]`: what a batch holds in the
    place of inputs is not looked at.

    path: the submodule of the whole network whose input the features are, None where they are what
        it returns. algo: on features.
    """

    path: str | None
    algo: MetaAlgorithm

    def meta(self, whole: Meta, features: Params) -> Meta:
        """What the algorithm needs of the meta-learned of the whole, and the features: `SUPPORT`,
        `QUERY` and, where there are inputs without labels, `UNLABELLED`."""
        init, buffers = (
            {
                n: t
                for n, t in whole[part].items()
                if self.net.places.get(n.removeprefix(MASK)) or n == META_STEP
            }
            for part in ("init", "buffers")
        )
        return Meta(init={**init, **features}, hyper=whole["hyper"], buffers=buffers)

    def begin(self, meta: Meta, given: Given) -> Params:
        return self.algo.begin(_own(meta), _on(meta, given))

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        return self.algo.inner_loss(_own(meta), fast, _on(meta, given), step)

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        return self.algo.finish(_own(meta), fast, _on(meta, given), step)

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        return self.algo.outer_loss(_own(meta), fast, query._replace(x=meta["init"][QUERY]))

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Outputs:
        return self.algo.predict(_own(meta), fast, x)


def _own(meta: Meta) -> Meta:
    init = {name: t for name, t in meta["init"].items() if name not in (SUPPORT, QUERY, UNLABELLED)}
    return Meta(init=init, hyper=meta["hyper"], buffers=meta["buffers"])


def _on(meta: Meta, given: Given) -> Given:
    found, rest = meta["init"], given.unlabelled
    if rest is not None:
        rest = rest._replace(x=found[UNLABELLED])
    return Given(given.support._replace(x=found[SUPPORT]), rest)


def frozen_body(algo: MetaAlgorithm, meta: Meta, tasks: Task) -> Body | None:
    """The part of `algo` that runs on features, None where there is none: where more adapts than
    the head, or the outputs of the network are not those of its head on what it is given.

    tasks: any T; whether the parts make the whole is tried on the first of them.
    """
    if tasks.given.unlabelled is not None or algo.rule.batch_size is not None or not algo.steps:
        return None
    found = on_features(algo)
    if found is None or found.path is None:
        return None
    body = Body(found.path, found.algo)
    return body if makes_the_whole(algo, body, meta, tasks.given.support) else None


@torch.no_grad()
def makes_the_whole(algo: MetaAlgorithm, body: Body, meta: Meta, supports: Batch) -> bool:
    """Whether the outputs of the network are those of its head on what that is given.

    supports: of any T tasks; tried on the first.
    """
    assert body.path is not None
    x, _, weight = supports.map(lambda t: t[0])
    weights = {**meta["buffers"], **meta["init"]}
    changed = {name: 1.5 * weights[name] + 0.1 for name in body.net.params}
    seeds = (torch.tensor(seed, device=supports.device) for seed in (1, 2))  # as dropout differs
    try:
        with dropping(next(seeds), 0):
            features = algo.net.before(body.path, weights, x, weight)
        with dropping(next(seeds), 0):
            whole = algo.net.apply({**weights, **changed}, x, weight)
        parts = body.net.apply({**body.meta(meta, {})["buffers"], **changed},
                               features, weight)  # fmt: skip
    except RuntimeError:  # not one tensor, or none of a shape that fits
        return False
    if not isinstance(whole, Tensor) or whole.shape != parts.shape:
        return False
    return bool((whole - parts).abs().max() <= _SAME * whole.abs().max())


def features(net: PureModule, path: str | None, weights: Params, batch: Batch) -> Tensor:
    """`[B, *]`: what the submodule at `path` is given, or what the whole network returns."""
    if path is None:
        return tensor_of(net.apply(weights, batch.x, batch.weight)).flatten(1)
    return net.before(path, weights, batch.x, batch.weight)


def features_of(algo: MetaAlgorithm, meta: Meta, path: str | None, task: Task) -> Params:
    """The features of the support and of the query inputs, under `SUPPORT` and `QUERY`."""
    net, weights = algo.net, {**meta["buffers"], **meta["init"]}
    support, query = task.given.support, task.query
    with inner_pass():
        found = features(net, path, weights, support)
    with outer_pass():
        statistics = net.support_statistics(weights, support.x, support.weight)
        return {SUPPORT: found, QUERY: features(net, path, {**weights, **statistics}, query)}


def through_features(
    algo: MetaAlgorithm, meta: Meta, task: Task, body: Body, gradient: TaskGradient, forward: bool
) -> GradientAndMetrics:
    """One task, as one piece: the gradient that `gradient` takes of the head, taken on to the
    body."""

    def both(init: Params) -> Params:
        whole = Meta(init=init, hyper={}, buffers=meta["buffers"])
        return features_of(algo, whole, body.path, task)

    found, back = vjp(both, meta["init"])[:2]
    inner = Execution(forward_over_reverse=forward, fused=False)
    of_head, metrics = gradient(body, body.meta(meta, found), task, inner)
    d_init = of_head["init"]
    (of_body,) = back({name: d_init.pop(name) for name in found}, retain_graph=False)
    for name, d in d_init.items():
        of_body[name] = of_body[name] + d
    return MetaGradients(init=of_body, hyper=of_head["hyper"]), metrics


@dataclass(frozen=True, eq=False)
class ThroughFeatures:
    """A `TaskGradient`: `piece` takes `gradient` of the head, and that of the body once, by it. It
    is given `options` too."""

    body: Body
    gradient: TaskGradient
    piece: Callable[..., GradientAndMetrics] = through_features
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        own = {"body": self.body, "gradient": self.gradient, **self.options}
        return run(self.piece, algo, meta, task, forward=run.forward_over_reverse, **own)
