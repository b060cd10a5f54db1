"""How sure an answer may be: folds, a temperature, calibration error, an interval.

The confidence of an answer is the largest of softmax(logits / T). T is what makes the labels of
shots that were held out likeliest; Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural
Networks, 2017. Few shots are often all right, which alone would make T 0 and every answer certain:
one shot more counts with them that is of every class alike, so that of n shots and N classes a
label weighs (n + 1 / N) / (n + 1).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

MOST = 10  # folds
BINS = 10  # of the confidence
_RANGE = (math.log(1e-3), math.log(1e4))  # of the logarithm of T


class Calibration(NamedTuple):
    """A temperature and what it rests on: held-out shots, their accuracy, and the calibration
    error before and after; `error` is in-sample."""

    temperature: float
    count: int
    accuracy: float
    error_before: float
    error: float


class Estimate(NamedTuple):
    """A share with its 95% interval, of `count` images."""

    accuracy: float
    low: float
    high: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (of tuple.count)

    def __str__(self) -> str:
        return (
            f"{self.accuracy:.1%} (95% interval {self.low:.1%} to {self.high:.1%}, Wilson, "
            f"{self.count} images)"
        )


def folds(
    labels: np.ndarray, groups: np.ndarray | None = None, seed: int = 0, most: int = MOST
) -> list[np.ndarray]:
    """The places that each fold holds out; every class keeps an example in each.

    As many folds as the largest class has examples, `most` at most, so that with few examples each
    is held out by itself, one of every class at a time. labels: `[n]`. groups: `[n]`, what has to
    stay together, as copies of one picture; a class of one group is not held out.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    own = {c: np.unique(groups[labels == c]) for c in np.unique(labels)}
    count = min(most, max(map(len, own.values()), default=0))
    rng, fold, sizes = np.random.default_rng(seed), {}, np.zeros(count, int)
    for members in own.values():
        if len(members) < 2:
            fold.update(dict.fromkeys(members, -1))  # of another class too: it stays in
    for members in own.values():
        taken = np.bincount([fold[g] for g in members if fold.get(g, -1) >= 0], minlength=count)
        for member in rng.permutation([g for g in members if g not in fold]):
            # Where the class has least; a fold with all of it would leave it without an example.
            place = int(np.lexsort((sizes, taken))[0])
            fold[member] = place
            taken[place] += 1
            sizes[place] += 1
    of = np.array([fold[g] for g in groups])
    found = (np.flatnonzero(of == number) for number in range(count))
    return [held for held in found if len(held) and _keeps_all(labels, held)]


def _keeps_all(labels: np.ndarray, held: np.ndarray) -> bool:
    return len(np.unique(np.delete(labels, held))) == len(np.unique(labels))


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """T of logits `[n, N]` of held-out examples and their classes `[n]`."""
    count, ways = logits.shape
    target = np.full((count, ways), 1 / ways / (count + 1))
    target[np.arange(count), labels] += count / (count + 1)

    def loss(log_t: float) -> float:
        return -float((target * log_softmax(logits / math.exp(log_t), axis=1)).sum(1).mean())

    # Not unimodal for sure, so from the best of a grid.
    grid = np.linspace(*_RANGE, 60)
    best = int(np.argmin([loss(at) for at in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    return math.exp(float(minimize_scalar(loss, bounds=around, method="bounded").x))  # type: ignore[union-attr]


def calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Of held-out logits `[n, N]`."""
    temperature = fitted_temperature(logits, labels)
    before, after = (probabilities(logits, t) for t in (1.0, temperature))
    right = logits.argmax(1) == labels
    return Calibration(
        temperature, len(labels), float(right.mean()),
        calibration_error(before.max(1), right), calibration_error(after.max(1), right),
    )  # fmt: skip


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / T) `[n, N]`."""
    return softmax(logits.astype(np.float64) / temperature, axis=1)


class Bins(NamedTuple):
    """Of equal steps of confidence: the answers in each, their mean confidence and accuracy, NaN
    where there are none."""

    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    confidence: np.ndarray
    accuracy: np.ndarray


def binned(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """right: `[n]`, whether each answer is, or the share of times that it was."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Bins(
            count,
            np.bincount(place, confidence, bins) / count,
            np.bincount(place, right, bins) / count,
        )


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error, sum over bins of n_b / n |accuracy_b - confidence_b|;
    Naeini, Cooper, Hauskrecht 2015."""
    found = binned(confidence, right, bins)
    gaps = np.nan_to_num(np.abs(found.accuracy - found.confidence))
    return float((found.count * gaps).sum() / found.count.sum())


def wilson(share: float, count: int, z: float = 1.959963984540054) -> Estimate:
    """The score interval of a share of `count` independent images; Wilson 1927. It stays inside 0
    to 1, and is no point where all are right."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), count)
