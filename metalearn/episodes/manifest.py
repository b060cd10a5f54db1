"""The finite list of episodes that an evaluation uses, with a hash that proves which."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from metalearn.episodes.source import EpisodeSource
from metalearn.types import Episodes


@dataclass(frozen=True)
class Manifest:
    """Episodes 0 to `episodes` - 1 of one split of a source."""

    source: EpisodeSource
    split: str
    episodes: int

    @cached_property
    def hash(self) -> str:
        """sha256 over what every episode holds, in hexadecimal."""
        total = hashlib.sha256(f"{self.split} {self.source.shape} {self.episodes}\n".encode())
        for index in range(self.episodes):
            total.update(self.source.fingerprint(self.split, index))
        return total.hexdigest()

    def batches(self, size: int) -> Iterator[Episodes]:
        """All episodes in order, `size` at a time; the last part may be smaller."""
        for start in range(0, self.episodes, size):
            stop = min(start + size, self.episodes)
            yield self.source.batch(self.split, range(start, stop))
