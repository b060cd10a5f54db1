"""Prototypes of places: a class is the mean of the features under its boxes or masks.

    c_n = sum over pictures and places of m_n(u) f(u) / sum of m_n(u)
    p(u = n | x) = softmax over n of  -d(f(u), c_n) / temperature                    (eq. 3)

with m_n(u) the share of place u that is of class n, class 0 the background, and d the squared
Euclidean distance or minus the cosine. Where places have boxes too, their sides are the network's
own, the same for every class, and learned by the outer loop alone.

Wang, Liew, Zou, Zhou, Feng: PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment,
2019, without its alignment of support and query. Its eqs. 1 and 2 average the means of the
pictures; here all places count the same, as a picture may show several classes, or none of one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.boxes import labels_of
from metalearn.backbones.heads import unit
from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import masked
from metalearn.classifiers.protocol import log_temperature, positive, temperature
from metalearn.functional import PureModule, pure
from metalearn.functional.outputs import tensor_of
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Params

_FITTED = ("prototypes", "counts")


@dataclass(frozen=True, eq=False)
class DensePrototypes:
    """Nothing adapts: the fast weights are the prototypes of background and classes.

    module: from `[B, *X]` to maps `[B, D + sides, h, w]`. loss: `Detection` or `Segmentation`.
    distance, temperature, learn_temperature: as in `ProtoNet`. There are as many columns as the
    support set has room for objects, absent ones lowest.
    """

    module: nn.Module
    loss: Any
    distance: Literal["euclidean", "cosine"] = "euclidean"
    temperature: float = 1.0
    learn_temperature: bool = False
    steps: int = field(default=0, init=False)
    rule: InnerRule = field(default=sgd(0.0), init=False, repr=False)
    kinds: tuple[Kind, ...] = ("exact",)
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        object.__setattr__(self, "net", pure(self.module))

    def init(self) -> Meta:
        """The module's own weights, and the temperature where it is learned."""
        weights = tree.clone(self.net.params)
        like = next(iter(weights.values()))
        hyper = log_temperature(self.temperature, self.learn_temperature)
        hyper = tree.map(lambda t: t.to(like), hyper)
        return Meta(init=weights, hyper=hyper, buffers=tree.clone(self.net.buffers))

    def _maps(self, meta: Meta, fast: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features `[B, D, h, w]` and sides `[B, sides, h, w]`."""
        statistics = {name: t for name, t in fast.items() if name not in _FITTED}
        weights = {**meta["buffers"], **meta["init"], **statistics}
        maps = tensor_of(self.net.apply(weights, batch.x, batch.weight))
        cut = maps.shape[1] - self.loss.sides
        return maps[:, :cut], maps[:, cut:]

    def begin(self, meta: Meta, given: Given) -> Params:
        """`prototypes` `[1 + B * M, D]`, background first, and `counts` `[1 + B * M]`."""
        support = given.support
        features, _ = self._maps(meta, {}, support)
        labels, _ = labels_of(support.y)
        shares = self.loss.shares(support, features, labels.numel() + 1)
        if support.weight is not None:
            shares = shares * (support.weight > 0).to(shares).view(-1, 1, 1, 1)
        counts = shares.sum((0, 2, 3))
        total = torch.einsum("bnhw,bdhw->nd", shares, features)
        means = total / torch.where(counts > 0, counts, 1).unsqueeze(1)
        return {"prototypes": means, "counts": counts}

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """The support set's own loss; no step descends on it."""
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """`fast`, and the support set's statistics where the norm layers ask for them."""
        support, weights = given.support, {**meta["buffers"], **meta["init"]}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def _outputs(self, meta: Meta, fast: Params, batch: Batch) -> Tensor:
        features, sides = self._maps(meta, fast, batch)
        means, counts = (fast[name] for name in _FITTED)
        places = features.movedim(1, -1).flatten(0, 2)
        if self.distance == "cosine":
            near = unit(places) @ unit(means).mT
        else:
            near = -squared_distances(places, means)
        logits = masked(near / temperature(meta["hyper"], self.temperature), counts)
        shape = (len(features), *features.shape[2:])
        return torch.cat([logits.unflatten(0, shape).movedim(-1, 1), sides], 1)

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The loss of the queries under what was fitted."""
        return self.loss(self._outputs(meta, fast, query), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss at the end alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        """`[B, 1 + B * M + sides, h, w]`: as a network with a head, for as many classes."""
        return self._outputs(meta, fast, Batch(x, None))
