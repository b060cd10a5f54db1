"""Any few-shot classifier, trained end to end with the network that its features come from.

    min over theta, phi of  sum over tasks of  L(logits_phi(f_theta(x_query), fit_phi(f_theta(S))))

with S the support set and phi what the classifier learns across tasks. Nothing adapts by steps:
the fast weights are what the classifier fits.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy, cross_entropy_of_tasks
from metalearn.classifiers.protocol import Classifier
from metalearn.functional import PureModule, pure
from metalearn.functional.outputs import tensor_of
from metalearn.inner.protocol import OnFeatures
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Params

_STATISTICS = ("support_mean", "support_var")  # the last part of the names of norm layers' own


@dataclass(frozen=True, eq=False)
class Metric:
    """A network and a classifier on its features.

    module: any `nn.Module` from `[B, *X]` to features `[B, D]`; more dimensions are flattened.
    classifier: see `metalearn.classifiers`; what it learns is `hyper`, under its own names.
    features: D, for a classifier that asks for it.
    """

    module: nn.Module
    classifier: Classifier
    loss: Loss = cross_entropy
    features: int | None = None
    steps: int = field(default=0, init=False)
    rule: InnerRule = field(default=sgd(0.0), init=False, repr=False)
    kinds: tuple[Kind, ...] = ("exact",)
    net: PureModule = field(init=False, repr=False)
    of_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))

    @property
    def transductive(self) -> bool:
        """Whether the classifier is."""
        return self.classifier.transductive

    @property
    def ways(self) -> int | None:
        """The most classes of a task that the classifier takes, where it was told."""
        return getattr(self.classifier, "ways", None)

    def init(self) -> Meta:
        """The module's own weights, and what the classifier learns."""
        weights = tree.clone(self.net.params)
        hyper = self.classifier.hyper(self.features)
        known = (*weights.values(), *self.net.buffers.values())  # those of a frozen network too
        like = next((t for t in known if t.is_floating_point()), None)
        if like is None:  # features that are given
            like = torch.zeros(())
        hyper = tree.map(lambda t: t.to(like), hyper)
        return Meta(init=weights, hyper=hyper, buffers=tree.clone(self.net.buffers))

    def _on_features(self, meta: Meta, fast: Params, batch: Batch) -> Batch:
        statistics = {n: t for n, t in fast.items() if _is_statistic(n)}
        weights = {**meta["buffers"], **meta["init"], **statistics}
        return batch._replace(
            x=tensor_of(self.net.apply(weights, batch.x, batch.weight)).flatten(1)
        )

    def _statistics(self, meta: Meta, support: Batch) -> Params:
        weights = {**meta["buffers"], **meta["init"]}
        return self.net.support_statistics(weights, support.x, support.weight)

    def begin(self, meta: Meta, given: Given) -> Params:
        """What the classifier fits."""
        unlabelled = given.unlabelled
        if unlabelled is not None:
            statistics = self._statistics(meta, given.support)
            unlabelled = self._on_features(meta, statistics, unlabelled)
        support = self._on_features(meta, {}, given.support)
        return self.classifier.fit(meta["hyper"], support, unlabelled)

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """The support set's own loss; no step descends on it."""
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """`fast`, and the support set's statistics where the norm layers ask for them."""
        return {**fast, **self._statistics(meta, given.support)}

    def _logits(self, meta: Meta, fast: Params, batch: Batch) -> Tensor:
        state = {name: t for name, t in fast.items() if not _is_statistic(name)}
        features = self._on_features(meta, fast, batch).x
        return self.classifier.logits(meta["hyper"], state, features)

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The loss of the queries under what was fitted."""
        return self.loss(self._logits(meta, fast, query), query)

    @property
    def of_tasks(self) -> bool:
        """Whether the inputs are features, and the classifier takes those of T tasks at once."""
        own = isinstance(self.module, nn.Flatten) and self.loss is cross_entropy
        return own and getattr(self.classifier, "of_tasks", False)

    def measured(self, meta: Meta, given: Given, query: Batch) -> Metrics:
        """The metrics `[T]` of T tasks at once."""
        unlabelled = None if given.unlabelled is None else _vectors(given.unlabelled)
        support, query = _vectors(given.support), _vectors(query)
        state = self.classifier.fit(meta["hyper"], support, unlabelled)
        return cross_entropy_of_tasks(self.classifier.logits(meta["hyper"], state, query.x), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss at the end alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        """Logits `[B, S]` for `x` `[B, *X]`: one column a class, unused columns lowest."""
        return self._logits(meta, fast, Batch(x, None))

    def on_features(self) -> OnFeatures:
        """The classifier on what the whole network returns."""
        return OnFeatures(None, Metric(nn.Flatten(), self.classifier, self.loss, self.features))


def _vectors(batch: Batch) -> Batch:
    # Those that are some already stay the same tensor: a classifier may know that it is asked about
    # what it was fitted on.
    return batch if batch.x.ndim == 3 else batch._replace(x=batch.x.flatten(2))


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in _STATISTICS
