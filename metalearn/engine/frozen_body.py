"""Where the head alone adapts, the rest of the network is a function of the images that no inner
step changes: it is computed once a task, and the inner loop runs on its features.

    F_s, F_q = body(x_support), body(x_query)
    d L / d body = (d L / d F_s) (d F_s / d body) + (d L / d F_q) (d F_q / d body)

with L the query loss after K steps of the head, differentiated by any strategy, to which the
features of a task are tensors like those that are learned. Raghu et al. 2020 (ANIL), section 4.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import vjp

from metalearn.algorithms.maml import MAML
from metalearn.backbones.heads import head_name
from metalearn.engine.execution import Execution
from metalearn.engine.task import Run, Task, TaskGradient
from metalearn.functional.norms import BatchNorm
from metalearn.functional.precision import inner_pass, outer_pass
from metalearn.inner.loop import dropping
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Meta, MetaGradients, Metrics, Params

SUPPORT, QUERY = "features of the support", "features of the query"  # no weight has such a name
_SAME = 1e-4  # of the largest output

_heads: WeakKeyDictionary[Any, dict[Any, "Head | None"]] = WeakKeyDictionary()


class Head(MAML):
    """MAML of the submodule at `path`, on features that stand in `meta["init"]`: what a batch
    holds in the place of images is not looked at."""

    path: str

    def __init__(self, whole: MAML, path: str):
        vars(self).update(vars(whole), net=whole.net.part(path), path=path)

    def meta(self, whole: Meta, support: Tensor, query: Tensor) -> Meta:
        """What the head needs of the meta-learned of the whole, and the features."""
        init, buffers = (
            {name: t for name, t in whole[part].items() if self.net.places.get(name)}
            for part in ("init", "buffers")
        )
        init = {**init, SUPPORT: support, QUERY: query}
        return Meta(init=init, hyper=whole["hyper"], buffers=buffers)

    def _outputs(self, meta: Meta, fast: Params, x: Tensor, weight: Tensor | None = None) -> Tensor:
        kept = {name: t for name, t in meta["init"].items() if name not in (SUPPORT, QUERY)}
        return self.net.apply({**meta["buffers"], **kept, **fast}, x, weight)

    def inner_loss(self, meta: Meta, fast: Params, support: Batch) -> Tensor:
        return super().inner_loss(meta, fast, support._replace(x=meta["init"][SUPPORT]))

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        return super().outer_loss(meta, fast, query._replace(x=meta["init"][QUERY]))


def head_of(algo: MetaAlgorithm, meta: Meta, tasks: Task) -> Head | None:
    """The part of `algo` that runs on features, None where there is none: where more adapts than
    the head, or the outputs of the network are not those of its head on what it is given.

    tasks: any T; whether the parts make the whole is tried on the first of them, once for each
    mode of the modules.
    """
    if type(algo) is not MAML or algo.adapting is None:  # a subclass may have losses of its own
        return None
    known = _heads.setdefault(algo, {})
    modes = algo.net.modes()
    if modes not in known:
        known[modes] = _tried(algo, meta, tasks.support.map(lambda t: t[0]))
    return known[modes]


@torch.no_grad()
def _tried(algo: MAML, meta: Meta, support: Batch) -> Head | None:
    path = head_name(algo.net.module)
    of_head = [name for name in algo.adapting or () if name.startswith(f"{path}.")]
    if not path or len(of_head) < len(algo.adapting or ()) or algo.rule.batch_size is not None:
        return None
    head, (x, _, weight) = Head(algo, path), support
    if any(isinstance(part, BatchNorm) for part in head.net.module.modules()):
        return None  # it may want the statistics of the support set, under names of the whole
    weights = {**meta["buffers"], **meta["init"]}
    changed = {name: 1.5 * weights[name] + 0.1 for name in of_head}
    seeds = (torch.tensor(seed, device=x.device) for seed in (1, 2))  # as dropout would differ
    try:
        with dropping(next(seeds), 0):
            features = algo.net.before(path, weights, x, weight)
        with dropping(next(seeds), 0):
            whole = algo.net.apply({**weights, **changed}, x, weight)
        parts = head._outputs(head.meta(meta, features, features), changed, features, weight)
    except RuntimeError:  # not one tensor, or none of a shape that fits
        return None
    same = whole.shape == parts.shape and (whole - parts).abs().max() <= _SAME * whole.abs().max()
    return head if same else None


def embedded(algo: MetaAlgorithm, meta: Meta, path: str, task: Task) -> tuple[Tensor, Tensor]:
    """The features of the support and of the query images."""
    net, weights, (support, query, _) = algo.net, {**meta["buffers"], **meta["init"]}, task
    with inner_pass():
        features = net.before(path, weights, support.x, support.weight)
    with outer_pass():
        statistics = net.support_statistics(weights, support.x, support.weight)
        return features, net.before(path, {**weights, **statistics}, query.x, query.weight)


def on_features(
    algo: MetaAlgorithm, meta: Meta, task: Task, head: Head, gradient: TaskGradient, forward: bool
) -> tuple[MetaGradients, Metrics]:
    """One task, as one piece: the gradient that `gradient` takes of the head, taken on to the
    body."""

    def features(init: Params) -> tuple[Tensor, Tensor]:
        return embedded(algo, Meta(init=init, hyper={}, buffers=meta["buffers"]), head.path, task)

    found, back = vjp(features, meta["init"])[:2]
    inner = Execution(forward=forward, fused=False)
    of_head, metrics = gradient(head, head.meta(meta, *found), task, inner)
    d_init = of_head["init"]
    (of_body,) = back((d_init.pop(SUPPORT), d_init.pop(QUERY)), retain_graph=False)
    for name, d in d_init.items():
        of_body[name] = of_body[name] + d
    return MetaGradients(init=of_body, hyper=of_head["hyper"]), metrics


@dataclass(frozen=True)
class ThroughFeatures:
    """A `TaskGradient`: `gradient` of the head alone, and the body once."""

    head: Head
    gradient: TaskGradient

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run
    ) -> tuple[MetaGradients, Metrics]:
        options = {"head": self.head, "gradient": self.gradient, "forward": run.forward}
        return run(on_features, algo, meta, task, **options)
