"""Sums of two sine waves, the second of twice the first one's frequency, as a family of tasks."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from metalearn.data.sinusoid import rising
from metalearn.errors import DataError


@dataclass(frozen=True)
class Harmonic:
    """y = a1 sin(w x + b1) + a2 sin(2 w x + b2) + noise.

    w and the phases b are uniform in the ranges given, the amplitudes standard normal; x is
    normal with standard deviation 1 around a centre of the task's own, uniform in `center`. The
    ranges are those of Lacoste et al. 2018 (Uncertainty in Multitask Transfer Learning). noise:
    standard deviation of what is added to y. Splits are independent seeds of `draw`.
    """

    frequency: tuple[float, float] = (5.0, 7.0)
    phase: tuple[float, float] = (0.0, 2 * math.pi)
    center: tuple[float, float] = (-4.0, 4.0)
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Raises DataError for a range that does not rise, and for noise below 0."""
        for name in ("frequency", "phase", "center"):
            object.__setattr__(self, name, rising("harmonic", name, getattr(self, name)))
        if not 0 <= self.noise < math.inf:
            raise DataError(f"harmonic: noise={self.noise} must be 0 or more, and finite")
        object.__setattr__(self, "noise", float(self.noise))

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """One task and `count` points of it: x and y, float32 [count, 1] each."""
        frequency = rng.uniform(*self.frequency)
        phases = rng.uniform(*self.phase, size=2)
        center = rng.uniform(*self.center)
        # Of uniform numbers: unlike numpy's normal ones they stay the same in every version.
        amplitudes, x, error = (ndtri(1 - rng.random(n)) for n in (2, count, count))
        x = (center + x)[:, None]
        waves = (amplitudes[i] * np.sin((i + 1) * frequency * x + phases[i]) for i in range(2))
        y = sum(waves) + self.noise * error[:, None]
        return x.astype(np.float32), y.astype(np.float32)
