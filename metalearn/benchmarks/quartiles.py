"""Medians with their spread."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, first and third quartile of one value or more."""
    low, median, high = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75))
    return Spread(float(median), float(low), float(high))
