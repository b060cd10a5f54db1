"""Algorithms on features that are computed once: a classifier, or the head of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from metalearn.algorithms import Metric
from metalearn.classifiers import Classifier
from metalearn.engine import Engine
from metalearn.episodes import Manifest
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Meta

_AT_ONCE = 2**25  # numbers of one operation over the tasks that are adapted at a time


class Head(NamedTuple):
    """An algorithm whose inputs are features, and what it starts from."""

    algo: MetaAlgorithm
    meta: Meta


def classifying(classifier: Classifier) -> Head:
    """`classifier` as it starts, with nothing meta-learned."""
    algo = Metric(nn.Flatten(), classifier)
    return Head(algo, algo.init())


def head_on_host(algo: MetaAlgorithm, whole: Meta) -> Head:
    """`algo`, which is on features, with its own of what was meta-learned with a network, on the
    host."""
    own = algo.net.places
    init, buffers = (
        {name: t.cpu() for name, t in part.items() if own.get(name)}
        for part in (whole["init"], whole["buffers"])
    )
    hyper = {name: t.cpu() for name, t in whole["hyper"].items()}
    return Head(algo, Meta(init=init, hyper=hyper, buffers=buffers))


def measure(head: Head, manifest: Manifest, at: Sequence[int] | None = None) -> EvalReport:
    """`evaluate` with as many tasks at a time as there is room for: features are small."""
    support, query, _ = manifest.source.batch(manifest.split, [0])
    each = support.shape[1] * query.shape[1:].numel()
    tasks = max(1, min(256, _AT_ONCE // each))
    report = evaluate(*head, manifest.batches(tasks), engine=Engine("vmap"), at=at)
    return replace(report, manifest_hash=manifest.hash)


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
