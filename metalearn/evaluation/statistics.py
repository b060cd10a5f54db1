"""Means with confidence intervals over episodes."""

import math
from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

SHARES = ("accuracy", "ap50", "miou")
"""Main metrics that are fractions, the more the better; what has none of them is told by its loss.
"""


def measure_of(names: Container[str]) -> str:
    """The main metric among `names`."""
    return next((name for name in SHARES if name in names), "loss")


class Interval(NamedTuple):
    """A mean with a symmetric confidence interval, `mean ± half_width`, over `count` values."""

    mean: float
    half_width: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  (of tuple.count)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of independent values and Student's t interval for it.

    half_width = t(n - 1, (1 + confidence) / 2) * s / sqrt(n), with t the quantile of Student's
    distribution with n - 1 degrees of freedom and s**2 = sum((x - mean)**2) / (n - 1).

    values: n numbers, any shape; NaN makes mean and half-width NaN. For n = 1 the half-width
        is NaN: one value says nothing about spread.

    Raises ValueError for no values, or a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    count = array.size
    if count == 0:
        raise ValueError("no values: a mean needs at least one")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    mean = float(array.mean())
    if count == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, count)
    quantile = float(stdtrit(count - 1, 0.5 + confidence / 2))
    return Interval(mean, quantile * float(array.std(ddof=1)) / math.sqrt(count), count)


def paired_interval(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    """Interval of mean(a - b), where a[i] and b[i] come from the same episode.

    It is narrower than the difference of two separate intervals, because what makes an episode
    hard is hard for both. The two differ at this confidence where the interval excludes 0.

    Raises ValueError where the lengths differ, or for no values.
    """
    first = np.asarray(a, dtype=np.float64).ravel()
    second = np.asarray(b, dtype=np.float64).ravel()
    if first.size != second.size:
        raise ValueError(f"pairs need one length, got {first.size} and {second.size} values")
    return mean_interval(first - second, confidence)
