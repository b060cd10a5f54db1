"""Whether a score puts networks in the order of the accuracy that they reach."""

import math
from collections.abc import Sequence
from typing import Any

from scipy.stats import weightedtau


def agreement(scores: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """The weighted Kendall tau, -1 to 1, in which a swap among the best weighs most; None for
    fewer than two networks, and where one of the two sees no difference.

    Vigna: A Weighted Correlation Index for Rankings with Ties, 2015, with hyperbolic weights, the
    mean of both orders.
    """
    if len(scores) < 2:
        return None
    tau: Any = weightedtau(list(scores), list(accuracies))
    found = float(tau.statistic)
    return None if math.isnan(found) else found
