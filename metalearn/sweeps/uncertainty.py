"""How sure a mean over seeds and episodes is, and a difference of two."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import trim_mean

DRAWS = 4000
"""Bootstrap replicates: an interval's ends then stand to a few hundredths of its width."""


class Estimate(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


def mean_over_seeds(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The mean of `values` `[S, E]` of S seeds on the same E episodes, and its percentile interval
    by a bootstrap that draws seeds and episodes anew, each with its row or column.

    One seed says nothing of other seeds: the interval is then over episodes alone.
    Owen: The pigeonhole bootstrap, 2007.
    """
    return _estimate(_replicates(values), float(values.mean()), confidence)


def difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> tuple[Estimate, float]:
    """mean(a) - mean(b) for `[S, E]` and `[S', E]` on the same E episodes, and the two-sided
    p-value of no difference: in each replicate both see the same episodes, and seeds of their own.

    Raises ValueError where the episodes are not as many.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} episodes are no pairs")
    drawn = _replicates(a) - _replicates(b, seeds=1)
    tail = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    mean = float(a.mean() - b.mean())
    return _estimate(drawn, mean, confidence), min(1.0, 2 * tail / (len(drawn) + 1))


def _replicates(values: np.ndarray, seeds: int = 0) -> np.ndarray:
    """Means `[DRAWS]` of rows and columns drawn with replacement: the same columns in every call
    with as many, other rows for another `seeds`."""
    count, episodes = values.shape
    columns = _columns(episodes)
    rows = _drawn(np.random.default_rng([count, 1 + seeds]), count)
    return np.einsum("ds,se,de->d", rows, values, columns, optimize=True)


@functools.lru_cache(maxsize=1)  # cells of one table have the same count, and drawing takes longest
def _columns(episodes: int) -> np.ndarray:
    return _drawn(np.random.default_rng([episodes, 0]), episodes)


def _drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """The share `[DRAWS, count]` of each in a draw of `count` with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count


def _estimate(drawn: np.ndarray, mean: float, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order: the k-th smallest of m times m - k + 1,
    and never less than one before it. Holm 1979."""
    corrected, at_least = [0.0] * len(values), 0.0
    for place, index in enumerate(np.argsort(values, kind="stable")):
        at_least = max(at_least, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = at_least
    return corrected


def interquartile_mean(scores: np.ndarray) -> float:
    """The mean of the middle half of all scores: seeds of every task together.

    Agarwal et al.: Deep Reinforcement Learning at the Edge of the Statistical Precipice, 2021.
    """
    return float(trim_mean(np.ravel(scores), 0.25))


def probability_of_improvement(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The chance that a run of `a` is better than one of `b` on a task drawn at random, ties as
    one half. a, b: for each task the scores of the runs. Agarwal et al. 2021, section 4.3."""
    chances = [
        float((np.subtract.outer(x, y) > 0).mean() + 0.5 * (np.subtract.outer(x, y) == 0).mean())
        for x, y in zip(a, b, strict=True)
    ]
    return float(np.mean(chances))
