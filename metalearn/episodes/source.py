"""Sources of episodes: (split, index) to one few-shot task.

What an episode holds depends on (data set, split, seed, index) alone. Each index has its own
generator, keyed by a hash of the four, so that no order of drawing, worker, rank or resume can
change it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from metalearn.types import Episodes


class EpisodeSource(Protocol):
    """An endless numbered stream of episodes for each split."""

    @property
    def shape(self) -> tuple[int | None, int | None, int]:
        """Ways (None for regression), shots, queries (a class, or in all for regression). Where
        they differ from episode to episode: the largest ways and queries, and None for shots."""
        ...

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        ...

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, stacked: support `[T, S, *X]`, query `[T, Q, *X]`, float32. Where
        tasks are of unequal size, both have `weight`, and padding of weight 0 at the end."""
        ...

    def fingerprint(self, split: str, index: int) -> bytes:
        """Bytes that identify what episode `index` holds."""
        ...


@dataclass(frozen=True)
class Derived:
    """What an `EpisodeSource` with other values for the same examples keeps of its `source`."""

    source: Any

    @property
    def shape(self) -> tuple[int | None, int | None, int]:
        """That of the source."""
        return self.source.shape

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        self.source.check(split)

    def fingerprint(self, split: str, index: int) -> bytes:
        """That of the source: which examples, not what became of them."""
        return self.source.fingerprint(split, index)


def describe_shape(shape: tuple[int | None, int | None, int]) -> str:
    """The shape of episodes in words, such as "5-way 1-shot"."""
    ways, shots, _ = shape
    if ways is None:
        return f"{shots} points"
    return f"{ways}-way {shots}-shot" if shots else f"at most {ways}-way, any shots"


class _Key(ISeedSequence):
    """A key of Philox as it is, where numpy would also ask the system for chance."""

    def __init__(self, key: np.ndarray):
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The key, uint64 `[2]`."""
        return self.key


def generator(digest: str, split: str, seed: int, index: int) -> np.random.Generator:
    """The generator of one episode: Philox, keyed by sha256 of (data set, split, seed, index)."""
    key = hashlib.sha256(f"{digest}/{split}/{seed}/{index}".encode()).digest()[:16]
    bits = np.random.Philox(_Key(np.frombuffer(key, dtype="<u8")))  # type: ignore[arg-type]
    return np.random.Generator(bits)
