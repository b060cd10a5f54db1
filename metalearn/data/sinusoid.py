"""The sinusoid regression family of MAML: one amplitude and one phase are one task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metalearn.errors import DataError


@dataclass(frozen=True)
class Sinusoid:
    """y = A sin(x - phase), with A, phase and x uniform in the ranges given.

    The ranges are those of Finn et al. 2017, section 5.1; the sign of the phase is that of the
    paper's code (cbfinn/maml, data_generator.py). Splits are independent seeds of `draw`, since
    the family is continuous and no task comes twice.
    """

    amplitude: tuple[float, float] = (0.1, 5.0)
    phase: tuple[float, float] = (0.0, math.pi)
    x: tuple[float, float] = (-5.0, 5.0)

    def __post_init__(self) -> None:
        """Raises DataError for a range that does not rise."""
        for name in ("amplitude", "phase", "x"):
            object.__setattr__(self, name, rising("sinusoid", name, getattr(self, name)))

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """One task and `count` points of it: x and y, float32 [count, 1] each."""
        amplitude = rng.uniform(*self.amplitude)
        phase = rng.uniform(*self.phase)
        x = rng.uniform(*self.x, size=(count, 1))
        return x.astype(np.float32), (amplitude * np.sin(x - phase)).astype(np.float32)


def rising(family: str, name: str, bounds: Sequence[float]) -> tuple[float, float]:
    """A range as a tuple of floats, also from [0, 1] or (0.0, 1.0): the seeds of episodes depend
    on its form. Raises DataError where it does not rise."""
    low, high = map(float, bounds)
    if not -math.inf < low < high < math.inf:
        raise DataError(f"{family}: {name} must rise, but is [{low}, {high}]")
    return low, high
