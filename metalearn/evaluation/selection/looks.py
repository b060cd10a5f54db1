"""What a network makes of a sample, and what its scores and accuracies are."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from metalearn.classifiers import Cosine, LogisticRegression
from metalearn.data import ImageDataset, TensorDataset
from metalearn.episodes import FewShotEpisodes, ImageTransform, Manifest
from metalearn.episodes.gather import inputs_of
from metalearn.errors import DataError
from metalearn.evaluation.features import FeatureEpisodes, unit_length
from metalearn.evaluation.on_features import classifying, measure
from metalearn.evaluation.selection.scores import SCORES
from metalearn.functional import PureModule
from metalearn.types import Inputs, Params, map_tensors

NEAREST_CENTROID = "nearest_centroid"
"""The score that is an accuracy: of episodes of validation classes."""
REACHED = (NEAREST_CENTROID, "logistic_regression")
"""What the scores are held against, by episodes of test classes."""
_BATCH = 128  # examples that pass through a network at a time


class Candidate(NamedTuple):
    """A network to be ranked, its weights on the device.

    path: of the linear layer that tells its source classes, whose input the features are; None
    where it gives features alone, or has learned no classes.
    """

    net: PureModule
    weights: Params
    transform: ImageTransform
    path: str | None = None


class Look(NamedTuple):
    """features: `[n, D]`. probabilities: of the source classes `[n, Z]`. labels: `[n]`."""

    features: torch.Tensor
    probabilities: np.ndarray | None
    labels: np.ndarray
    seconds: float


def look(candidate: Candidate, dataset: ImageDataset | TensorDataset, split: str) -> Look:
    """Every example of `split` through the network, once. Raises DataError for features that are
    not finite."""
    started, net, weights = time.perf_counter(), candidate.net, candidate.weights
    sizes = dataset.sizes[split]
    classes = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.concatenate([np.arange(size) for size in sizes])
    features, logits = [], []
    on = next(iter(weights.values())).device
    with torch.no_grad(), net.evaluating():
        for x in _batches(candidate.transform, dataset, split, classes, numbers):
            x = map_tensors(lambda t: t.to(on), x)
            if candidate.path is None:
                features.append(net.apply(weights, x).flatten(1).cpu())
                continue
            found = net.before(candidate.path, weights, x)
            features.append(found.flatten(1).cpu())
            logits.append(net.part(candidate.path).apply(weights, found).double().cpu())
    made = torch.cat(features)
    if not made.isfinite().all():
        raise DataError("its features are not finite; use other weights or another norm")
    theta = torch.cat(logits).softmax(1).numpy() if logits else None
    return Look(made, theta, classes, time.perf_counter() - started)


def _batches(
    transform: ImageTransform, dataset: ImageDataset | TensorDataset, split: str,
    classes: np.ndarray, numbers: np.ndarray,
) -> Iterator[Inputs]:  # fmt: skip
    for start in range(0, len(classes), _BATCH):
        rows = slice(start, start + _BATCH)
        x, _ = inputs_of(dataset, split, classes[rows], numbers[rows])
        yield x if transform.is_identity else transform(x)


def scored(found: Look, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By the name of a score of `SCORES` its `value`, None where the network has no source classes,
    and `seconds`."""
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        of, needs = SCORES[name]
        started = time.perf_counter()
        x = found.features.numpy() if needs == "features" else found.probabilities
        value = None if x is None else of(x, found.labels)
        rows[name] = {"value": value, "seconds": time.perf_counter() - started}
    return rows


def accuracies(
    found: Look, dataset: ImageDataset | TensorDataset, split: str, how: str, shape: dict[str, int],
    episodes: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Mean `accuracy` of `how`, one of `REACHED`, with its `half_width`, on episodes of what was
    looked at; and `seconds`, and the hash of the episodes."""
    started = time.perf_counter()
    source = FewShotEpisodes(dataset, seed=seed, **shape)  # type: ignore[arg-type]
    source.check(split)
    sizes = dataset.sizes[split]
    row = np.full((len(sizes), int(sizes.max())), -1)
    row[np.arange(row.shape[1]) < sizes[:, None]] = np.arange(int(sizes.sum()))
    head, change = classifying(Cosine()), None
    if how != NEAREST_CENTROID:
        head, change = classifying(LogisticRegression(ways=shape["ways"])), unit_length
    manifest = Manifest(
        FeatureEpisodes(source, found.features, row, split, change), split, episodes
    )
    report = measure(head, manifest)
    mean, half, count = report.accuracy
    told = {"accuracy": mean, "half_width": half, "episodes": count}
    told["manifest_hash"] = report.manifest_hash
    return {**told, "seconds": time.perf_counter() - started}
