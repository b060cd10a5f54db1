"""Batches of labelled base-class images, numbered: what step s holds depends on (data set,
held-out split, seed, s) alone."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metalearn.data import ImageDataset
from metalearn.engine.ranks import Ranks
from metalearn.episodes import Augmentation, ImageTransform
from metalearn.episodes.augmentation import NUMBERS
from metalearn.episodes.gather import scaled
from metalearn.episodes.prefetch import prefetched
from metalearn.episodes.randaugment import to_device
from metalearn.episodes.source import generator
from metalearn.errors import UsageError
from metalearn.training.held_out_split import SPLIT, Subset
from metalearn.training.mixing import Labelled, Mixing


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Reads images of a data set as a network takes them. device: where they are kept and
    gathered, None for the host, straight from the store."""

    dataset: ImageDataset
    transform: ImageTransform
    device: torch.device | None = None

    def unprepared(self, split: str, classes: np.ndarray, examples: np.ndarray) -> Tensor:
        """`[n, C, H, W]` in [0, 1]."""
        if self.device is None:
            return scaled(torch.from_numpy(self.dataset.images(split, classes, examples)))
        return scaled(self.dataset.images_on(self.device, split, classes, examples))

    def __call__(self, split: str, classes: np.ndarray, examples: np.ndarray) -> Tensor:
        """`[n, C, H, W]`, prepared."""
        return self.transform(self.unprepared(split, classes, examples))


@dataclass(frozen=True, eq=False)
class BaseImages:
    """The images that train, in a new random order every epoch, changed and mixed at random.

    What is left of an epoch after its last whole batch is not used. ranks: share every batch, and
    an image is changed as one process would; None for this process alone.

    Raises UsageError where the images do not fill one batch, or not every rank has one of it.
    """

    reader: ImageReader
    subset: Subset
    batch_size: int
    seed: int = 0
    augmentation: Augmentation | None = None
    mixing: Mixing = Mixing()  # noqa: RUF009  (frozen)
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        if self.ranks and self.batch_size < self.ranks.size:
            raise UsageError(
                f"training.batch_size={self.batch_size} is less than an image for each of the "
                f"{self.ranks.size} ranks; use fewer ranks, or a larger batch"
            )
        if self.ranks and self.mixing.manifold:
            raise UsageError(
                "manifold_mixup mixes the images of a whole batch inside the network, and ranks "
                "have parts of it; use one process, or training.mixup"
            )
        if self.batch_size > len(self.subset):
            raise UsageError(
                f"training.batch_size={self.batch_size}, but {len(self.subset)} images are there "
                f"to train on; use at most {len(self.subset)}"
            )

    @property
    def epoch(self) -> int:
        """Steps in one."""
        return len(self.subset) // self.batch_size

    def batches(self, steps: range, workers: int = 0) -> Generator[Labelled, None, None]:
        """The batches of consecutive `steps`, made ahead by so many threads."""
        return prefetched(lambda key: self._made(*key), self._keys(steps), workers)

    def _keys(self, steps: range) -> Generator[tuple[int, np.ndarray], None, None]:
        """Each step and the rows of its images."""
        epoch, order = -1, np.empty(0, np.int64)
        for step in steps:
            number, place = divmod(step, self.epoch)
            if number != epoch:
                epoch = number
                rng = self._rng("order", epoch)
                order = np.argsort(rng.random(len(self.subset)), kind="stable")
            yield step, order[place * self.batch_size : (place + 1) * self.batch_size]

    def _made(self, step: int, rows: np.ndarray) -> Labelled:
        own = (self.ranks or Ranks()).work(len(rows))
        # An image may be mixed with one of another rank.
        places = np.arange(len(rows))[slice(None) if self.mixing.mixes else own]
        subset = self.subset.at(rows[places])
        x = self.reader.unprepared(SPLIT, subset.classes, subset.examples)
        if self.augmentation is not None:
            rng = self._rng("augmented", step)
            x = _changed(self.augmentation, x, places, len(rows), rng)
        y = torch.from_numpy(subset.classes).to(x.device)
        batch = self.mixing(self.reader.transform(x), y, self._rng("mixed", step))
        if not self.mixing.mixes:
            return batch
        return batch._replace(x=batch.x[own], y=batch.y[own], other=batch.other[own])

    def _rng(self, use: str, index: int) -> np.random.Generator:
        digest = self.reader.dataset.digest
        return generator(f"{digest}/pretraining/{use}", SPLIT, self.seed, index)


def _changed(
    how: Augmentation, x: Tensor, places: np.ndarray, count: int, rng: np.random.Generator
) -> Tensor:
    """`x` `[n, C, H, W]` augmented, every image by random numbers of its own, which follow from its
    place among the `count` of the batch."""
    quarters = (rng.random(count) * 4).astype(np.int64)[places]
    numbers = rng.random((count, NUMBERS), np.float32)[places]
    draws = rng.random((how.randaugment, count, 2), np.float32)[:, places]
    return how(x, to_device(quarters, x.device), to_device(numbers, x.device), draws)
