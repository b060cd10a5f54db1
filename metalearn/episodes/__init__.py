"""Few-shot tasks drawn from data sets, numbered and repeatable."""

from metalearn.data import ImageDataset, Sinusoid
from metalearn.episodes.manifest import Manifest
from metalearn.episodes.source import EpisodeSource, FewShotEpisodes, SinusoidEpisodes

__all__ = ["EpisodeSource", "FewShotEpisodes", "Manifest", "SinusoidEpisodes", "make_episodes"]


def make_episodes(
    dataset: ImageDataset | Sinusoid, *, ways: int, shots: int, queries: int, seed: int
) -> EpisodeSource:
    """The episodes that fit the kind of data set; `ways` has no meaning for regression."""
    if isinstance(dataset, Sinusoid):
        return SinusoidEpisodes(dataset, shots, queries, seed)
    return FewShotEpisodes(dataset, ways, shots, queries, seed)
