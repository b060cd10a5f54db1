"""Prototypical networks: classify by the nearest class mean in a learned embedding.

    c_n = mean of f(x) over the support examples of class n                          (eq. 1)
    p(y = n | x) = softmax over n of  -d(f(x), c_n) / temperature                    (eq. 2)

with d the squared Euclidean distance, or minus the cosine.

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, 2017.
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.backbones.heads import unit
from metalearn.classifiers.classes import class_means, masked
from metalearn.errors import UsageError
from metalearn.functional import PureModule, pure
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Params


@dataclass(frozen=True, eq=False)
class ProtoNet:
    """Nothing adapts: the fast weights are the prototypes.

    module: any `nn.Module` from `[B, *X]` to embeddings `[B, D]`.
    distance: "euclidean" (squared) or "cosine". temperature: divides the logits, above 0.
    learn_temperature: meta-learn it, as `hyper["log_temperature"]`.
    """

    module: nn.Module
    distance: Literal["euclidean", "cosine"] = "euclidean"
    temperature: float = 1.0
    learn_temperature: bool = False
    loss: Loss = cross_entropy
    steps: int = field(default=0, init=False)
    rule: InnerRule = field(default=sgd(0.0), init=False, repr=False)
    kinds: tuple[Kind, ...] = ("exact",)
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.distance not in ("euclidean", "cosine"):
            raise UsageError(f"distance={self.distance!r} is not known; use euclidean or cosine")
        if not self.temperature > 0:
            raise UsageError(f"temperature={self.temperature} must be above 0")
        object.__setattr__(self, "net", pure(self.module))

    def init(self) -> Meta:
        """The module's own weights, and the temperature where it is learned."""
        weights = tree.clone(self.net.params)
        like = next(iter(weights.values()))
        log_temperature = like.new_tensor(self.temperature).log()
        return Meta(
            init=weights,
            hyper={"log_temperature": log_temperature} if self.learn_temperature else {},
            buffers=tree.clone(self.net.buffers),
        )

    def _embed(self, meta: Meta, fast: Params, x: Inputs, weight: Tensor | None = None) -> Tensor:
        statistics = {n: t for n, t in fast.items() if n not in ("prototypes", "counts")}
        weights = {**meta["buffers"], **meta["init"], **statistics}
        features = self.net.apply(weights, x, weight).flatten(1)
        return unit(features) if self.distance == "cosine" else features

    def begin(self, meta: Meta, given: Given) -> Params:
        """`prototypes` `[S, D]` and `counts` `[S]`, the support examples of each class; those
        of rows from N on are 0."""
        support = given.support
        features = self._embed(meta, {}, support.x, support.weight)
        prototypes, counts = class_means(features, support)
        return {"prototypes": prototypes, "counts": counts}

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """The support set's own loss under its prototypes; no step descends on it."""
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """The prototypes, and the support set's statistics where the norm layers ask for them."""
        support = given.support
        weights = {**meta["buffers"], **meta["init"]}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def _logits(self, meta: Meta, fast: Params, features: Tensor) -> Tensor:
        prototypes, counts = fast["prototypes"], fast["counts"]
        if self.distance == "cosine":
            similarity = features @ unit(prototypes).T
        else:
            difference = features.unsqueeze(1) - prototypes.unsqueeze(0)
            similarity = -difference.square().sum(2)
        log_temperature = meta["hyper"].get("log_temperature")
        temperature = self.temperature if log_temperature is None else log_temperature.exp()
        return masked(similarity / temperature, counts)

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the queries against the prototypes."""
        features = self._embed(meta, fast, query.x, query.weight)
        return self.loss(self._logits(meta, fast, features), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss at the end alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        """Logits `[B, S]` for `x` `[B, *X]`: one column a class, unused columns lowest."""
        return self._logits(meta, fast, self._embed(meta, fast, x))
