"""A classifier on frozen features, chosen by cross-validation, and what the choice is worth.

An estimate from the folds that chose is too good. So each outer fold is held out from the choice
too: the inner folds of the rest choose the classifier and its temperature, and what was held out
is answered once; Varma, Simon: Bias in Error Estimation when Using Cross-Validation for Model
Selection, 2006. Repeats shuffle the folds; they steady the estimate and count as no more images.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from metalearn.classifiers import Classifier, Cosine, LinearProbe, LogisticRegression
from metalearn.errors import UsageError
from metalearn.evaluation.on_features import classifying
from metalearn.evaluation.own_images.calibration import (
    Calibration,
    Estimate,
    calibration,
    folds,
    probabilities,
    wilson,
)
from metalearn.inner.rules import sgd
from metalearn.types import Batch

_STRENGTHS = (1.0, 10.0, 100.0)  # of logistic regression: C, of features of unit mean square
_STEPS = (30, 300)  # of the head, by SGD of rate 1 on such features
_FOLDS = 5  # at most: the outer, and the inner of few shots
_MANY = 100  # images, from which on three inner folds say enough


class Candidate(NamedTuple):
    """kind: the name of its group. node: what makes it in a configuration of `algorithm=metric`;
    rate: of the inner rule, where it has one."""

    kind: str
    told: str
    classifier: Classifier
    node: dict[str, Any]
    rate: float | None = None


class Choice(NamedTuple):
    """calibration: by the folds that chose; None where nothing could be held out. accuracies: of
    every candidate there."""

    candidate: Candidate
    calibration: Calibration | None
    accuracies: dict[str, float]

    @property
    def temperature(self) -> float:
        """1 where nothing could be held out."""
        return self.calibration.temperature if self.calibration else 1.0


@dataclass(frozen=True)
class Held:
    """Every answer to what was held out: images `[m]`, shares of the classes `[m, N]`.

    chosen: how often each candidate was. folds: of a repeat, the most.
    """

    images: np.ndarray
    p: np.ndarray
    labels: np.ndarray
    chosen: Counter[str]
    folds: int
    repeats: int

    def of_images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images that were held out, the share of times that each was answered right, and its
        mean shares `[n, N]`."""
        names, place = np.unique(self.images, return_inverse=True)
        count = np.bincount(place)
        right = np.bincount(place, self.p.argmax(1) == self.labels) / count
        mean = np.zeros((len(names), self.p.shape[1]))
        np.add.at(mean, place, self.p)
        return names, right, mean / count[:, None]

    def estimate(self, groups: np.ndarray) -> Estimate:
        """Accuracy with Wilson's interval over different pictures, each of which counts once,
        copies of it together. groups: `[n]`, of all images."""
        names, right, _ = self.of_images()
        place = np.unique(groups[names], return_inverse=True)[1]
        of_pictures = np.bincount(place, right) / np.bincount(place)
        return wilson(float(of_pictures.mean()), len(of_pictures))


def candidates(features: Tensor, ways: int) -> list[Candidate]:
    """Those to choose from, the simplest first. features: `[S, D]`, of the shots to fit."""
    square = max(float(features.double().square().sum(1).mean()), 1e-12)
    known = {"temperature": 0.1, "learn_temperature": False}
    found = [_candidate("nearest centroid", "by cosine", Cosine, known)]
    for strength in _STRENGTHS:
        # As it is written into a configuration, and read again.
        values = {"strength": float(f"{strength / square:.6g}"), "learn_strength": False}
        values["ways"] = ways
        told = f"C {strength:g}"
        found.append(_candidate("logistic regression", told, LogisticRegression, values))
    rate = float(f"{1 / square:.6g}")
    for steps in _STEPS:
        values = {"steps": steps, "ways": ways}
        told = f"{steps} steps of SGD"
        found.append(_candidate("fine-tuned head", told, LinearProbe, values, rate))
    return found


def _candidate(
    kind: str, told: str, made: Callable[..., Any], values: dict[str, Any],
    rate: float | None = None,
) -> Candidate:  # fmt: skip
    ruled = {} if rate is None else {"rule": sgd(rate)}
    node = {"_target_": f"metalearn.classifiers.{made.__name__}", **values}
    return Candidate(kind, told, made(**values, **ruled), node, rate)


def answers(
    classifier: Classifier, x: Tensor, labels: np.ndarray, asked: Tensor, ways: int
) -> np.ndarray:
    """Logits `[n, ways]` of features `[n, D]` after fitting to `x` `[S, D]`."""
    algo, meta = classifying(classifier)
    with torch.no_grad():
        state = algo.classifier.fit(meta["hyper"], Batch(x, torch.from_numpy(labels)))  # type: ignore[attr-defined]
        found = algo.classifier.logits(meta["hyper"], state, asked)  # type: ignore[attr-defined]
    return found[:, :ways].double().numpy()


def choose(x: Tensor, labels: np.ndarray, groups: np.ndarray, ways: int, seed: int) -> Choice:
    """By the accuracy on held-out shots; of equals by their likelihood, then the simplest."""
    among = candidates(x, ways)
    held = folds(labels, groups, seed, _FOLDS if len(labels) < _MANY else 3)
    if not held:
        return Choice(among[0], None, {})
    truth = np.concatenate([labels[part] for part in held])
    best: tuple[tuple[float, float], Candidate, Calibration] | None = None
    accuracies = {}
    for one in among:
        parts = []
        for part in held:
            rest = np.delete(np.arange(len(labels)), part)
            parts.append(answers(one.classifier, x[rest], labels[rest], x[part], ways))
        logits = np.concatenate(parts)
        found = calibration(logits, truth)
        scores = log_softmax(logits / found.temperature, axis=1)
        likelihood = round(float(scores[np.arange(len(truth)), truth].mean()), 9)
        accuracies[f"{one.kind}, {one.told}"] = found.accuracy
        if best is None or (found.accuracy, likelihood) > best[0]:
            best = (found.accuracy, likelihood), one, found
    assert best is not None
    return Choice(best[1], best[2], accuracies)


def held_out(
    x: Tensor, labels: np.ndarray, groups: np.ndarray, ways: int, seed: int,
    repeats: int | None = None,
) -> Held:  # fmt: skip
    """Nested cross-validation of `choose`: features `[n, D]`, classes and groups `[n]`, of which
    each class has two or more. repeats: None for three with few images, one with many.

    Raises UsageError where nothing can be held out.
    """
    repeats = max(1, min(3, 200 // len(labels))) if repeats is None else repeats
    images, shares, chosen, most = [], [], Counter[str](), 0
    for repeat in range(repeats):
        parts = folds(labels, groups, seed + repeat, _FOLDS)
        most = max(most, len(parts))
        for part in parts:
            rest = np.delete(np.arange(len(labels)), part)
            choice = choose(x[rest], labels[rest], groups[rest], ways, seed + repeat)
            logits = answers(choice.candidate.classifier, x[rest], labels[rest], x[part], ways)
            images.append(part)
            shares.append(probabilities(logits, choice.temperature))
            chosen[choice.candidate.kind] += 1
    if not images:
        raise UsageError(
            "no picture can be held out and leave one of each class; give more, or mend those that "
            "stand in several classes"
        )
    every = np.concatenate(images)
    return Held(every, np.concatenate(shares), labels[every], chosen, most, repeats)
