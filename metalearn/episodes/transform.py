"""The fixed transform of images before the network: size, channels and scale, on every split.

Not an augmentation: nothing here is random, and evaluation applies it too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.data.paths import LARGEST
from metalearn.episodes.source import Derived, EpisodeSource
from metalearn.errors import UsageError
from metalearn.types import Episodes


@dataclass(frozen=True)
class ImageTransform:
    """A fixed transform of images `[B, C, H, W]`, in this order. None leaves them unchanged.

    size: resized to `size x size`, bilinear and antialiased, whatever their sides were.
    channels: a single channel is repeated so many times.
    mean, std: `(x - mean) / std`, each one number or one for every channel.

    Raises UsageError for numbers out of range.
    """

    size: int | None = None
    channels: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(f"images.{name}", getattr(self, name)))
        for name in ("size", "channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"images.{name}={value} must be 1 or more, or null")
        if self.size is not None and self.size > LARGEST:
            raise UsageError(f"images.size={self.size} must be {LARGEST} or less")
        if self.channels not in (None, 1, 3):
            raise UsageError(f"images.channels={self.channels} must be 1, 3 or null")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise UsageError(f"images.std={list(self.std)} must be above 0")

    @property
    def is_identity(self) -> bool:
        """Whether images stay as they are."""
        return self == ImageTransform()

    def shape(self, before: Sequence[int]) -> tuple[int, int, int]:
        """`(C, H, W)` after the transform of `before` (C, H, W). Raises UsageError where they do
        not fit."""
        channels, height, width = before
        if self.channels not in (None, channels):
            if channels != 1:
                raise UsageError(
                    f"images.channels={self.channels}, but the images have {channels}; "
                    f"use images.channels={channels} or null"
                )
            channels = self.channels
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, channels):
                raise UsageError(
                    f"images.{name} has {len(values)} numbers, but the images have {channels} "
                    f"channels; give 1 or {channels}"
                )
        return (channels, height, width) if self.size is None else (channels, self.size, self.size)

    def __call__(self, x: Tensor) -> Tensor:
        """The transform of `x`: a new tensor, or `x` itself where nothing changes."""
        channels, height, width = self.shape(x.shape[1:])
        if x.shape[2:] != (height, width):
            x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
        x = x.expand(-1, channels, -1, -1)
        if self.mean is not None:
            x = x - _each(self.mean, x)
        if self.std is not None:
            x = x / _each(self.std, x)
        return x.contiguous()


@dataclass(frozen=True)
class TransformedEpisodes(Derived):
    """The episodes of `source` with their images transformed: an `EpisodeSource`."""

    source: EpisodeSource
    transform: ImageTransform

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, all parts transformed alike."""

        def transformed(x: Tensor) -> Tensor:
            return self.transform(x.flatten(0, 1)).unflatten(0, x.shape[:2])

        support, query, rest = self.source.batch(split, indices)
        support, query = (batch._replace(x=transformed(batch.x)) for batch in (support, query))
        return Episodes(support, query, rest and rest._replace(x=transformed(rest.x)))


def _numbers(name: str, value: Any) -> list[float] | None:
    if value is None:
        return None
    found: list[Any] = [value] if isinstance(value, str | float | int) else list(value)
    for number in found:
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if not plain or not math.isfinite(number):
            raise UsageError(f"{name}={value} must be a number, or a list of one for each channel")
    return [float(number) for number in found]


def _each(values: Sequence[float], x: Tensor) -> Tensor:
    """`values` for the channels of `x`; the host does not wait for its device."""
    channels = torch.tensor(values, dtype=x.dtype).view(-1, 1, 1)
    return channels.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else channels
