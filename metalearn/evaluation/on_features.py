"""Algorithms on features that are computed once: a classifier, or the head of a network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from metalearn import tree
from metalearn.algorithms import Metric
from metalearn.backbones.norms import inductive
from metalearn.classifiers import Classifier
from metalearn.engine import Engine
from metalearn.engine.frozen_body import frozen_body
from metalearn.engine.ranks import Ranks
from metalearn.engine.task import tasks_of
from metalearn.episodes import FewShotEpisodes, ImageTransform, Manifest, TransformedEpisodes
from metalearn.episodes.gather import inputs_of
from metalearn.evaluation.features import FeatureEpisodes, extract, used
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.functional.masks import MASK
from metalearn.functional.torch_private import TorchDispatchMode
from metalearn.inner import protocol
from metalearn.inner.protocol import MetaAlgorithm, OnFeatures
from metalearn.types import Episodes, Inputs, Meta, map_tensors

_AT_ONCE = 2**20  # numbers of the largest tensor over the tasks that are adapted at a time
_TOGETHER = 128  # images that pass through a network at a time
_WORTH = 2  # times that an image is used, from which on its features are computed apart


class Head(NamedTuple):
    """An algorithm whose inputs are features, and what it starts from."""

    algo: MetaAlgorithm
    meta: Meta


def classifying(
    classifier: Classifier, features: int | None = None, dtype: torch.dtype | None = None
) -> Head:
    """`classifier` as it starts, with nothing meta-learned. features: D, where it asks for it.
    dtype: of what it starts from; None for torch's usual."""
    algo = Metric(nn.Flatten(), classifier, features=features)
    meta, dtype = algo.init(), torch.get_default_dtype() if dtype is None else dtype
    return Head(algo, tree.map_meta(lambda t: t.to(dtype), meta))


def head_on_host(algo: MetaAlgorithm, whole: Meta) -> Head:
    """`algo`, which is on features, with its own of what was meta-learned with a network, on the
    host."""
    own = algo.net.places
    init, buffers = (
        {name: t.cpu() for name, t in part.items() if own.get(name.removeprefix(MASK))}
        for part in (whole["init"], whole["buffers"])
    )
    hyper = {name: t.cpu() for name, t in whole["hyper"].items()}
    return Head(algo, Meta(init=init, hyper=hyper, buffers=buffers))


def measure(
    head: Head, manifest: Manifest, at: Sequence[int] | None = None, ranks: Ranks | None = None
) -> EvalReport:
    """`evaluate` with as many tasks at a time as stay in the cache."""
    first = manifest.source.batch(manifest.split, range(1))
    with Largest() as made:
        evaluate(*head, first, engine=Engine("vmap"), at=at)
    tasks = max(1, min(256, _AT_ONCE // made.numbers))
    return evaluate(*head, manifest, engine=Engine("vmap", ranks=ranks), at=at, together=tasks)


class Largest(TorchDispatchMode):
    """While it is entered: the numbers of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, looked at."""
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, tuple | list) else (made,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.numel())
        return made


def makes_the_whole(algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> OnFeatures | None:
    """What `algo` is on features of single images that no inner step changes; None where there are
    no such features, or more stands between them and the outputs than it knows of.

    episodes: any, where the weights are; tried on the first.
    """
    found = protocol.on_features(algo)
    if found is None or not inductive(algo.net.module):
        return None
    if found.path is None:
        return found
    with algo.net.evaluating():
        return found if frozen_body(algo, meta, tasks_of(algo, episodes)) else None


def evaluate_once(
    algo: MetaAlgorithm,
    meta: Meta,
    manifest: Manifest,
    steps: int | None = None,
    engine: Engine | None = None,
    device: torch.device | str | None = None,
    coming: int | None = None,
) -> EvalReport:
    """`evaluate`, with each image through the network once where no inner step changes its features
    and the episodes use it more than once."""
    given = algo, meta, manifest, steps, engine, device
    source, transform = manifest.source, ImageTransform()
    if isinstance(source, TransformedEpisodes):
        transform, source = source.transform, source.source
    if not isinstance(source, FewShotEpisodes) or source.sizes is not None:
        return evaluate(*given, coming=coming)
    dataset, split = source.dataset, manifest.split
    many = manifest.episodes * source.ways * (source.shots + source.queries)
    if many < _WORTH * int(np.sum(dataset.sizes[split])):
        return evaluate(*given, coming=coming)
    where = torch.device("cpu" if device is None else device)
    first = manifest.source.batch(split, [0]).map(lambda t: t.to(where))
    found = makes_the_whole(algo, meta, first)
    if found is None:
        return evaluate(*given, coming=coming)
    classes, examples, row = used([source], split, manifest.episodes)
    ranks = (engine.ranks if engine else None) or Ranks()

    def inputs(starts: Iterable[int]) -> Iterator[Inputs]:
        for start in starts:
            rows = slice(start, start + _TOGETHER)
            x, _ = inputs_of(dataset, split, classes[rows], examples[rows])
            x = x if transform.is_identity else transform(x)
            yield map_tensors(lambda t: t.to(where), x)

    weights = {**meta["buffers"], **meta["init"]}
    starts = range(0, len(classes), _TOGETHER)
    own = starts[ranks.share(len(starts)).start : ranks.share(len(starts)).stop]
    parts = ranks.gathered(extract(algo.net, weights, inputs(own), found.path) if own else None)
    features = torch.cat([part for part in parts if part is not None])
    taken = replace(manifest, source=FeatureEpisodes(source, features, row, split))
    last = algo.steps if steps is None else steps
    return measure(head_on_host(found.algo, meta), taken, at=range(last + 1), ranks=ranks)


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
