"""Few-shot tasks drawn from data sets, numbered and repeatable."""

import torch

from metalearn.data import Harmonic, ImageDataset, Mixture, Sinusoid, TensorDataset
from metalearn.episodes.augmentation import Augmentation, AugmentedEpisodes, augmented
from metalearn.episodes.augmix import AugMix
from metalearn.episodes.corruptions import CorruptedEpisodes, Corruption, corrupted
from metalearn.episodes.dense import TASKS, DenseEpisodes
from metalearn.episodes.few_shot import FewShotEpisodes
from metalearn.episodes.manifest import Manifest, read_manifest, write_manifest
from metalearn.episodes.mixed import MixedEpisodes
from metalearn.episodes.regression import CurveEpisodes
from metalearn.episodes.sizes import ImbalancedSizes, MetaDatasetSizes, Sizes
from metalearn.episodes.source import EpisodeSource
from metalearn.episodes.transform import ImageTransform, TransformedEpisodes
from metalearn.errors import UsageError

__all__ = [
    "AugMix",
    "Augmentation",
    "AugmentedEpisodes",
    "CorruptedEpisodes",
    "Corruption",
    "CurveEpisodes",
    "DenseEpisodes",
    "EpisodeSource",
    "FewShotEpisodes",
    "ImageTransform",
    "ImbalancedSizes",
    "Manifest",
    "MetaDatasetSizes",
    "MixedEpisodes",
    "Sizes",
    "TransformedEpisodes",
    "augmented",
    "corrupted",
    "make_episodes",
    "read_manifest",
    "write_manifest",
]


def make_episodes(
    dataset: ImageDataset | TensorDataset | Mixture | Sinusoid | Harmonic,
    *,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    device: torch.device | None = None,
    sizes: Sizes | None = None,
    within_superclass: bool = False,
    concentration: float | None = None,
    task: str = "classification",
) -> EpisodeSource:
    """The episodes that fit the kind of data set.

    device: where images are kept and gathered. It, `ways`, `sizes`, `within_superclass` and
    `concentration` have no meaning for regression. task: "detection" and "segmentation" are of
    boxes and masks. Raises UsageError where the data set has none.
    """
    if isinstance(dataset, Sinusoid | Harmonic):
        return CurveEpisodes(dataset, shots, queries, seed)

    def of(one: ImageDataset | TensorDataset) -> FewShotEpisodes:
        return FewShotEpisodes(
            one, ways, shots, queries, seed, device, sizes, within_superclass, concentration
        )

    if task in TASKS and not isinstance(dataset, TensorDataset):  # whose targets are as given
        if isinstance(dataset, Mixture):
            raise UsageError(f"task={task} is for one data set; use dataset=glyph_scenes")
        return DenseEpisodes(of(dataset), task)
    if isinstance(dataset, Mixture):
        sources = {name: _single(of(one)) for name, one in dataset.sets.items()}
        return MixedEpisodes(dataset, sources, seed, device)
    return _single(of(dataset))


def _single(source: FewShotEpisodes) -> FewShotEpisodes:
    """`source`, of images that show one class each. Raises UsageError."""
    dataset = source.dataset
    if isinstance(dataset, ImageDataset) and dataset.scene is not None:
        raise UsageError(
            f"{dataset.name} has pictures of several classes; use task=detection or "
            "task=segmentation, or dataset=glyphs"
        )
    return source
