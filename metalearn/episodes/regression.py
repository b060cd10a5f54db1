"""Regression episodes: points of one curve out of a family."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metalearn.data import Harmonic, Sinusoid
from metalearn.data.dataset import SPLITS
from metalearn.episodes.source import generator
from metalearn.errors import UsageError, check_whole
from metalearn.types import Batch, Episodes


@dataclass(frozen=True)
class CurveEpisodes:
    """Regression: `shots` support and `queries` query points of one curve."""

    dataset: Sinusoid | Harmonic
    shots: int
    queries: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shots", "queries"):
            check_whole(f"episodes.{name}", getattr(self, name), 1)

    @property
    def shape(self) -> tuple[None, int, int]:
        """(None, K, Q)."""
        return None, self.shots, self.queries

    def check(self, split: str) -> None:
        """Raise UsageError for an unknown split; every known one has every curve."""
        if split not in SPLITS:
            raise UsageError(f"split={split!r} is not known; use {', '.join(SPLITS)}")

    def _points(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(repr(self.dataset), split, self.seed, index)
        return self.dataset.draw(rng, self.shots + self.queries)

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: support `[T, K, 1]`, query `[T, Q, 1]`."""
        points = [self._points(split, index) for index in indices]
        x, y = (torch.from_numpy(np.stack(part)) for part in zip(*points, strict=True))
        parts = slice(self.shots), slice(self.shots, None)
        return Episodes(*(Batch(x[:, part], y[:, part]) for part in parts))

    def fingerprint(self, split: str, index: int) -> bytes:
        """The curve's points, rounded to 1e-4 so that the rounding of a sine does not matter."""
        rounded = (np.round(p * 1e4).astype("<i8") for p in self._points(split, index))
        return b"".join(part.tobytes() for part in rounded)
