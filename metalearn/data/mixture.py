"""Several data sets as one; each episode is drawn from one of them, as in Meta-Dataset."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from metalearn.data.dataset import SPLITS, ImageDataset
from metalearn.data.paths import check_size
from metalearn.errors import DataError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data sets whose images are brought to one shape `[channels, size, size]`.

    proportions: by split, the share of the episodes that each data set gets, in any unit; one
        that is not named gets none. A split that is not named has all sets in equal parts. So
        `{"train": {"mini_imagenet": 1}, "test": {"cub": 1}}` trains on one set and tests on
        another.

    Raises DataError for a name or share that makes no sense.
    """

    sets: Mapping[str, ImageDataset]
    proportions: Mapping[str, Mapping[str, float]] | None = None
    size: int = 84
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.sets) < 2:
            raise DataError("mixture: it needs two data sets or more; use dataset=<the one>")
        if self.size < 1 or self.channels not in (1, 3):
            raise DataError(f"mixture: size={self.size} must be 1 or more, channels 1 or 3")
        check_size("mixture", self.size)
        for name, dataset in self.sets.items():
            if dataset.image_shape[0] > self.channels:
                raise DataError(f"mixture: {name} is in colour; use dataset.channels=3")
        proportions = self.proportions or {}
        if unknown := set(proportions) - set(SPLITS):
            raise DataError(f"mixture: proportions of {min(unknown)}; use {', '.join(SPLITS)}")
        for split, shares in proportions.items():
            numbers: list[Any] = list(shares.values()) if isinstance(shares, Mapping) else ["none"]
            if not all(isinstance(share, int | float) for share in numbers):
                raise DataError(
                    f"mixture: proportions.{split}={shares} must name data sets, each with a number"
                )
            if unknown := set(shares) - set(self.sets):
                raise DataError(
                    f"mixture: proportions.{split} names {min(unknown)}; it has "
                    f"{', '.join(self.sets)}"
                )
            if min(numbers, default=0) < 0 or not 0 < sum(numbers) < float("inf"):
                raise DataError(
                    f"mixture: proportions.{split} must be 0 or more each, and not all 0"
                )

    @property
    def name(self) -> str:
        """The names of all, joined."""
        return "+".join(self.sets)

    @property
    def splits(self) -> tuple[str, ...]:
        """train, val, test."""
        return SPLITS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    @cached_property
    def digest(self) -> str:
        """sha256 over the data sets' names and digests, the proportions and the shape."""
        total = hashlib.sha256(f"{self.image_shape}\n".encode())
        for name, dataset in self.sets.items():
            total.update(f"{name} {dataset.digest}\n".encode())
        for split in SPLITS:
            total.update(self.shares(split).astype("<f8").tobytes())
        return total.hexdigest()

    def shares(self, split: str) -> np.ndarray:
        """The part of the episodes of `split` that each data set gets, `[sets]`, summing to 1."""
        given = (self.proportions or {}).get(split) or dict.fromkeys(self.sets, 1.0)
        shares = np.array([float(given.get(name, 0)) for name in self.sets])
        return shares / shares.sum()

    def member(self, name: str) -> ImageDataset:
        """The data set of that name."""
        return self.sets[name]

    def fits(self, device: torch.device) -> bool:
        """Whether the images of all together fit on `device`, as `ImageDataset.fits` says."""
        return all(dataset.fits(device, len(self.sets)) for dataset in self.sets.values())
