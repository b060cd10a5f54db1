"""Classifiers of features: what is learned from the support set of one task, without a network.

Each is an algorithm whose module sees features `[B, D]`, so that the one `evaluate` measures it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from metalearn.algorithms import MAML, MetaAlgorithm, ProtoNet
from metalearn.engine import Engine
from metalearn.episodes import Manifest
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.inner.rules import InnerRule
from metalearn.types import Batch, Meta

_AT_ONCE = 2**25  # numbers of one operation over the tasks that are adapted at a time


class Head(NamedTuple):
    """An algorithm over features, and what it starts from."""

    algo: MetaAlgorithm
    meta: Meta


def nearest_centroid() -> Head:
    """The class whose mean feature has the largest cosine with the query's; features have unit
    length before the mean is taken."""
    return Head(ProtoNet(nn.Flatten(), "cosine"), Meta(init={}, hyper={}, buffers={}))


def linear(features: int, ways: int, rule: InnerRule, steps: int) -> Head:
    """A linear layer from zero, `steps` steps of `rule` on the whole support set.

    With SGD this is the Baseline of Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot
    Classification, 2019, section 3.2, whose feature extractor stays as it was pre-trained.
    """
    layer = nn.Linear(features, ways, device="meta").to_empty(device="cpu")  # draws nothing
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    algo = MAML(layer, steps, rule)
    return Head(algo, algo.init())


def measure(head: Head, manifest: Manifest, at: Sequence[int] | None = None) -> EvalReport:
    """`evaluate` with as many tasks at a time as there is room for: features are small."""
    support, query, _ = manifest.source.batch(manifest.split, [0])
    each = support.x.shape[1] * query.x.shape[1] * query.x.shape[2]
    tasks = max(1, min(256, _AT_ONCE // each))
    report = evaluate(*head, manifest.batches(tasks), engine=Engine("vmap"), at=at)
    return replace(report, manifest_hash=manifest.hash)


def logistic_regression(support: Batch, query: Tensor, strength: float = 1.0) -> np.ndarray:
    """Classes `[Q]` of the features `query` `[Q, D]`, by scikit-learn's multinomial regression.

        min over W, b of  |W|^2 / 2 + strength * sum over the support set of the cross-entropy

    support: `[S, D]`, `[S]`. As in Tian, Wang, Krishnan, Tenenbaum, Isola: Rethinking Few-shot
    Image Classification: A Good Embedding Is All You Need?, 2020 ("RFS"), section 3.3, for
    features of unit length.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(support.x.double().numpy(), support.y.numpy())
    return np.asarray(model.predict(query.double().numpy()))


def logistic_regression_accuracies(manifest: Manifest, strength: float = 1.0) -> np.ndarray:
    """Query accuracy of every episode of a manifest of features: `[episodes]`."""
    found = []
    for batch in manifest.batches(32):
        for x, y, queries, truth in zip(*batch.support[:2], *batch.query[:2], strict=True):
            classes = logistic_regression(Batch(x, y), queries, strength)
            found.append(float((classes == truth.numpy()).mean()))
    return np.array(found)


class Choice(NamedTuple):
    """What was chosen on validation. accuracy: there. edge: of a grid that might have been wider,
    in words; "" where the choice lies inside."""

    rate: float
    steps: int
    accuracy: float
    edge: str


def choose(accuracies: Mapping[float, Mapping[int, float]]) -> Choice:
    """The rate and number of steps of the highest accuracy, given by rate and then by steps; of
    equals the fewest steps, then the lowest rate."""
    every = [(-a, k, rate) for rate, by in accuracies.items() for k, a in by.items()]
    accuracy, steps, rate = min(every)
    edges = [
        f"{name}={value:g}"
        for name, value, grid in (
            ("rate", rate, {r for _, _, r in every}),
            ("steps", steps, {k for _, k, _ in every}),
        )
        if len(grid) > 1 and value in (min(grid), max(grid))
    ]
    return Choice(rate, steps, -accuracy, " and ".join(edges))
