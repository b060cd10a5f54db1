"""Episodes whose images are corrupted: the queries alone, or the support set too."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.episodes.corruptions import blur, digital, noise, weather
from metalearn.episodes.corruptions.constants import CORRUPTIONS, Sizes, constants
from metalearn.episodes.source import Derived, EpisodeSource, generator
from metalearn.errors import UsageError, nearest
from metalearn.functional.dropout import fold
from metalearn.types import Batch, Episodes

On = Literal["query", "both"]

_PARTS = noise, blur, weather, digital
_MADE: dict[str, Callable[[Tensor, Any, Tensor], Tensor]] = {
    name: next(getattr(part, name) for part in _PARTS if hasattr(part, name))
    for name in CORRUPTIONS
}


@dataclass(frozen=True)
class Corruption:
    """One of the fifteen common corruptions of images `[B, C, H, W]` in [0, 1], all at once and
    where they are.

    severity: 1 to 5. on: the queries, or both them and the support set. sizes: whose numbers, see
    `constants`: CIFAR-10-C's for images up to 64 pixels, ImageNet-C's for larger ones, or one of
    them for all. seed: of what is drawn.

    The published images are rounded to 8 bits at the end; these are not. Frost is drawn, not a
    photograph. Raises UsageError for a name or severity that is not known.

    Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations, 2019, section 3.
    """

    name: str
    severity: int = 3
    on: On = "query"
    sizes: Sizes = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            known = nearest(self.name, CORRUPTIONS)
            raise UsageError(
                f"corruption.name={self.name} is not known{known}; use {', '.join(CORRUPTIONS)}"
            )
        whole = isinstance(self.severity, int) and not isinstance(self.severity, bool)
        if not whole or not 1 <= self.severity <= 5:
            raise UsageError(f"corruption.severity={self.severity} must be 1, 2, 3, 4 or 5")
        for name, kind in (("on", On), ("sizes", Sizes)):
            if getattr(self, name) not in get_args(kind):
                told = " or ".join(get_args(kind))
                raise UsageError(
                    f"corruption.{name}={getattr(self, name)} is not known; use {told}"
                )

    def check(self, shape: Sequence[int]) -> None:
        """Raise UsageError where images of `shape` (C, H, W) cannot be corrupted so."""
        channels, height, width = shape
        if channels not in (1, 3):
            raise UsageError(f"corruption: images have 1 or 3 channels, not {channels}")
        if min(height, width) < 8:
            raise UsageError(f"corruption: images of {height}x{width} are too small; use 8x8")

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """`x` corrupted, each image by its own seed, int64 `[B]`."""
        self.check(x.shape[1:])
        how = constants(self.name, self.severity, max(x.shape[2:]), self.sizes)
        return _MADE[self.name](x, how, seeds.to(x.device))


@dataclass(frozen=True)
class CorruptedEpisodes(Derived):
    """The episodes of `source` with corrupted images: an `EpisodeSource`.

    What is drawn follows from which images an episode holds, its index and `corruption.seed`.
    """

    source: EpisodeSource
    corruption: Corruption

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, corrupted."""
        episodes = self.source.batch(split, indices)
        found = [self._seed(split, index) for index in indices]
        seeds = torch.tensor(found, dtype=torch.int64, device=episodes.support.device)
        query = self._corrupted(episodes.query, fold(seeds, 1))
        if self.corruption.on == "query":
            return episodes._replace(query=query)
        support = self._corrupted(episodes.support, fold(seeds, 0))
        return episodes._replace(support=support, query=query)

    def _seed(self, split: str, index: int) -> int:
        digest = hashlib.sha256(self.source.fingerprint(split, index)).hexdigest()
        rng = generator(f"{digest}/corrupted", split, self.corruption.seed, index)
        return int(rng.random() * 2**53)

    def _corrupted(self, batch: Batch, seeds: Tensor) -> Batch:
        places = torch.arange(batch.shape[1], device=batch.device)
        each = fold(seeds.unsqueeze(1), places)
        x = self.corruption(batch.x.flatten(0, 1), each.flatten())
        return batch._replace(x=x.view_as(batch.x))


def corrupted(source: EpisodeSource, how: Corruption | None) -> EpisodeSource:
    """`source` with corrupted images; itself for None. Raises UsageError where it has none, or
    none that can be corrupted so."""
    if how is None:
        return source
    shape = getattr(getattr(source, "dataset", None), "image_shape", None)
    if shape is None:
        raise UsageError("corruption is of images, and these episodes have none; leave it out")
    how.check(shape)
    return CorruptedEpisodes(source, how)
