"""Batches of pictures of base classes with their boxes, numbered: what step s holds depends on
(data set, held-out split, seed, s) alone."""

from dataclasses import dataclass

import numpy as np
import torch

from metalearn.data import ImageDataset
from metalearn.episodes import ImageTransform
from metalearn.episodes.dense import pictures_of
from metalearn.episodes.source import generator
from metalearn.errors import UsageError
from metalearn.training.held_out_split import SPLIT, Subset
from metalearn.types import Batch


@dataclass(frozen=True, eq=False)
class BasePictures:
    """Pictures of images of base classes, in a new random order every epoch, all of their objects
    labelled by their class. Raises UsageError where the images do not fill one batch."""

    dataset: ImageDataset
    subset: Subset
    batch_size: int
    transform: ImageTransform
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size * self.objects > len(self.subset):
            raise UsageError(
                f"training.batch_size={self.batch_size}, but {len(self.subset)} images are there "
                f"to train on; use at most {len(self.subset) // self.objects}"
            )

    @property
    def objects(self) -> int:
        """In one picture."""
        return 1 if self.dataset.scene is None else self.dataset.scene.objects

    @property
    def epoch(self) -> int:
        """Steps in one."""
        return len(self.subset) // (self.batch_size * self.objects)

    def __call__(self, step: int) -> Batch:
        """The pictures of step `step`, counted from 0."""
        number, place = divmod(step, self.epoch)
        order = np.argsort(self._rng("order", number).random(len(self.subset)), kind="stable")
        each = self.batch_size * self.objects
        rows = order[place * each : (place + 1) * each]
        return self._made(self.subset.at(rows), self._rng("placed", step))

    def of(self, subset: Subset, count: int, use: str) -> Batch:
        """`count` pictures of `subset`, always the same."""
        rng = generator(f"{self.dataset.digest}/detector/{use}", SPLIT, 0, 0)
        order = np.argsort(rng.random(len(subset)), kind="stable")
        return self._made(subset.at(order[: count * self.objects]), rng)

    def _rng(self, use: str, index: int) -> np.random.Generator:
        return generator(f"{self.dataset.digest}/detector/{use}", SPLIT, self.seed, index)

    def _made(self, subset: Subset, rng: np.random.Generator) -> Batch:
        found = pictures_of(self.dataset, SPLIT, *subset, rng)
        return found._replace(x=self.transform(torch.as_tensor(found.x)))
