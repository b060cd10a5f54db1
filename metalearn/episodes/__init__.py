"""Few-shot tasks drawn from data sets, numbered and repeatable."""

import torch

from metalearn.data import ImageDataset, Sinusoid
from metalearn.episodes.augment import Augmentation, AugmentedEpisodes, augmented
from metalearn.episodes.manifest import Manifest, read_manifest, write_manifest
from metalearn.episodes.prepared import Preparation, PreparedEpisodes
from metalearn.episodes.source import EpisodeSource, FewShotEpisodes, SinusoidEpisodes

__all__ = [
    "Augmentation",
    "AugmentedEpisodes",
    "EpisodeSource",
    "FewShotEpisodes",
    "Manifest",
    "Preparation",
    "PreparedEpisodes",
    "SinusoidEpisodes",
    "augmented",
    "make_episodes",
    "read_manifest",
    "write_manifest",
]


def make_episodes(
    dataset: ImageDataset | Sinusoid,
    *,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    device: torch.device | None = None,
) -> EpisodeSource:
    """The episodes that fit the kind of data set.

    device: where images are kept and gathered. It and `ways` have no meaning for regression.
    """
    if isinstance(dataset, Sinusoid):
        return SinusoidEpisodes(dataset, shots, queries, seed)
    return FewShotEpisodes(dataset, ways, shots, queries, seed, device)
