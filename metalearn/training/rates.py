"""How the rate of a supervised training goes: a factor for every step, which needs no state."""

import math
from collections.abc import Callable, Sequence

from metalearn.errors import UsageError

Schedule = Callable[[int, int, int], float]
"""(step from 0, steps in all, steps an epoch) to the factor of the optimizer's rate."""


def cosine(warmup: float = 0.0, min_factor: float = 0.0) -> Schedule:
    """Up in a line over `warmup` epochs, then down along a cosine to `min_factor` at the end.

        min_factor + (1 - min_factor) * (1 + cos(pi * t)) / 2,  t from 0 to 1 after the warm-up

    Loshchilov, Hutter 2017, eq. 5, without restarts. Raises UsageError for a warm-up below 0.
    """
    if not warmup >= 0:
        raise UsageError(f"schedule.warmup={warmup} must be 0 or more")

    def factor(step: int, steps: int, epoch: int) -> float:
        rising = warmup * epoch
        if step < rising:
            return min((step + 1) / rising, 1.0)
        t = (step - rising) / max(steps - rising, 1)
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * t)) / 2

    return factor


def milestones(epochs: Sequence[float], factor: float = 0.1) -> Schedule:
    """Times `factor` after each of so many `epochs`."""

    def of(step: int, steps: int, epoch: int) -> float:
        return factor ** sum(step >= end * epoch for end in epochs)

    return of


def constant() -> Schedule:
    """One rate throughout."""
    return lambda step, steps, epoch: 1.0
