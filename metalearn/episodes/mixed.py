"""Episodes of several data sets, each from one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metalearn.data import Mixture
from metalearn.episodes.few_shot import FewShotEpisodes
from metalearn.episodes.gather import EpisodeIds, gather
from metalearn.episodes.source import generator
from metalearn.types import Episodes


@dataclass(frozen=True)
class MixedEpisodes:
    """Each episode from one data set of `dataset`, drawn by the proportions of its split.

    sources: one for each data set, all of one shape.
    """

    dataset: Mixture
    sources: Mapping[str, FewShotEpisodes]
    seed: int = 0
    device: torch.device | None = None

    @property
    def shape(self) -> tuple[int, int | None, int]:
        """That of every source."""
        return next(iter(self.sources.values())).shape

    def check(self, split: str) -> None:
        """Raise UsageError where a data set that has a part in `split` cannot give an episode."""
        for source, share in zip(self.sources.values(), self.dataset.shares(split), strict=True):
            if share:
                source.check(split)

    def draw(self, split: str, index: int) -> EpisodeIds:
        """The data set, classes and examples of episode `index`."""
        rng = generator(self.dataset.digest, split, self.seed, index)
        edges = np.cumsum(self.dataset.shares(split))
        place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        name = list(self.sources)[place]
        return self.sources[name].draw(split, index)._replace(member=name)

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: pixels scaled to [0, 1], support `[T, S, C, H, W]`."""
        drawn = [self.draw(split, index) for index in indices]
        return gather(self.dataset, split, drawn, self.device, varied=self.shape[1] is None)

    def fingerprint(self, split: str, index: int) -> bytes:
        """The data set's name, and the class and example numbers."""
        return self.draw(split, index).encode(varied=self.shape[1] is None)
