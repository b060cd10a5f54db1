"""Where episodes come from: a source turns (split, index) into one few-shot task.

What an episode holds depends on (data set, split, seed, index) alone. Each index has its own
generator, keyed by a hash of the four, so that no order of drawing, worker, rank or resume can
change it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from metalearn.data import ImageDataset, Sinusoid
from metalearn.data.dataset import SPLITS
from metalearn.errors import UsageError
from metalearn.types import Batch, Episodes


class EpisodeSource(Protocol):
    """An endless numbered stream of episodes of one shape for each split."""

    @property
    def shape(self) -> tuple[int | None, int, int]:
        """Ways (None for regression), shots, queries (a class, or in all for regression)."""
        ...

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        ...

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, stacked: support `[T, S, *X]`, query `[T, Q, *X]`, float32."""
        ...

    def fingerprint(self, split: str, index: int) -> bytes:
        """Bytes that identify what episode `index` holds."""
        ...


def generator(digest: str, split: str, seed: int, index: int) -> np.random.Generator:
    """The generator of one episode: Philox, keyed by sha256 of (data set, split, seed, index)."""
    key = hashlib.sha256(f"{digest}/{split}/{seed}/{index}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8")))


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest of `values` [n], in order: a stable argsort cut short."""
    last = min(count, len(values)) - 1
    candidates = np.flatnonzero(values <= np.partition(values, last)[last])
    return candidates[np.argsort(values[candidates], kind="stable")][:count]


def scaled(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], the nearest to pixel / 255 on every device."""
    # By a tensor: a plain 255 CUDA turns into a factor of 1/255, a bit off for half the values.
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


class EpisodeIds(NamedTuple):
    """Which examples an episode holds. classes: `[N]`, numbered within the split;
    support: `[N, K]` and query: `[N, Q/N]`, numbered within each class."""

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray

    def encode(self) -> bytes:
        """The numbers as little-endian int64."""
        return b"".join(part.astype("<i8").tobytes() for part in self)


def gather(
    dataset: ImageDataset,
    split: str,
    drawn: Sequence[EpisodeIds],
    device: torch.device | None = None,
) -> Episodes:
    """The images of episodes of one shape, pixels scaled to [0, 1]: support `[T, N*K, C, H, W]`.

    device: where the images are kept and gathered, None for the host, straight from the store.
    """
    classes = np.stack([ids.classes for ids in drawn])

    def examples(which: np.ndarray) -> Batch:
        tasks, ways, each = which.shape
        chosen = split, classes[:, None, :], which.transpose(0, 2, 1)
        if device is None:
            images = torch.from_numpy(dataset.images(*chosen))
        else:
            images = dataset.images_on(device, *chosen)
        labels = torch.arange(ways, device=images.device).repeat(tasks, each)
        return Batch(scaled(images.flatten(1, 2)), labels)

    return Episodes(
        examples(np.stack([ids.support for ids in drawn])),
        examples(np.stack([ids.query for ids in drawn])),
    )


@dataclass(frozen=True)
class FewShotEpisodes:
    """N-way K-shot classification with `queries` query examples a class.

    Classes and examples are drawn uniformly without replacement. A class's label is its place
    in the draw. Examples go shot by shot, one of every class, so that minibatches of a multiple
    of N examples are balanced.

    device: where the images are kept and gathered, None for the host, straight from the store.
    What an episode holds is the same to the bit.

    Raises UsageError for a shape that is not positive; `check` tells whether a split can fill it.
    """

    dataset: ImageDataset
    ways: int
    shots: int
    queries: int
    seed: int = 0
    device: torch.device | None = None

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries"):
            if getattr(self, name) < 1:
                raise UsageError(f"episodes.{name}={getattr(self, name)} must be 1 or more")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, queries a class)."""
        return self.ways, self.shots, self.queries

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        if split not in self.dataset.splits:
            raise UsageError(f"split={split!r} is not known; use {', '.join(self.dataset.splits)}")
        available = self.dataset.class_count(split)
        if not available:
            raise UsageError(
                f"{self.dataset.name} has no classes in its {split} split; use another split, or "
                "give it some by dataset.fractions or dataset.splits"
            )
        if self.ways > available:
            raise UsageError(
                f"episodes.ways={self.ways}, but {self.dataset.name} has {available} classes "
                f"in its {split} split; use at most {available}"
            )
        examples = int(self.dataset.examples_in(split, np.arange(available)).min())
        if self.shots + self.queries > examples:
            raise UsageError(
                f"episodes.shots + episodes.queries = {self.shots + self.queries}, but a class of "
                f"{self.dataset.name} ({split}) has {examples} examples; use at most {examples}"
            )

    def draw(self, split: str, index: int) -> EpisodeIds:
        """The classes and examples of episode `index`."""
        rng = generator(self.dataset.digest, split, self.seed, index)
        count = self.dataset.class_count(split)
        # The order of uniform numbers, which numpy keeps from version to version.
        classes = smallest(rng.random(count), self.ways)
        sizes = self.dataset.examples_in(split, classes)
        # Class by class from one stream; what a smaller class lacks is never among the first.
        order = np.full((len(classes), sizes.max()), np.inf)
        order[np.arange(sizes.max()) < sizes[:, None]] = rng.random(sizes.sum())
        examples = np.argsort(order, axis=1, kind="stable")[:, : self.shots + self.queries]
        return EpisodeIds(classes, examples[:, : self.shots], examples[:, self.shots :])

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: pixels scaled to [0, 1], support `[T, N*K, C, H, W]`."""
        drawn = [self.draw(split, index) for index in indices]
        return gather(self.dataset, split, drawn, self.device)

    def fingerprint(self, split: str, index: int) -> bytes:
        """The class and example numbers, as little-endian int64."""
        return self.draw(split, index).encode()


@dataclass(frozen=True)
class SinusoidEpisodes:
    """Regression on sine curves: `shots` support and `queries` query points of one curve."""

    dataset: Sinusoid
    shots: int
    queries: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shots", "queries"):
            if getattr(self, name) < 1:
                raise UsageError(f"episodes.{name}={getattr(self, name)} must be 1 or more")

    @property
    def shape(self) -> tuple[None, int, int]:
        """(None, K, Q)."""
        return None, self.shots, self.queries

    def check(self, split: str) -> None:
        """Raise UsageError for an unknown split; every known one has every curve."""
        if split not in SPLITS:
            raise UsageError(f"split={split!r} is not known; use {', '.join(SPLITS)}")

    def _points(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(repr(self.dataset), split, self.seed, index)
        return self.dataset.draw(rng, self.shots + self.queries)

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: support `[T, K, 1]`, query `[T, Q, 1]`."""
        points = [self._points(split, index) for index in indices]
        x, y = (torch.from_numpy(np.stack(part)) for part in zip(*points, strict=True))

        def part(tensor: Tensor, query: bool) -> Tensor:
            return tensor[:, self.shots :] if query else tensor[:, : self.shots]

        return Episodes(*(Batch(part(x, query), part(y, query)) for query in (False, True)))

    def fingerprint(self, split: str, index: int) -> bytes:
        """The curve's points, rounded to 1e-4 so that no rounding of a sine shows."""
        return b"".join(
            np.round(p * 1e4).astype("<i8").tobytes() for p in self._points(split, index)
        )
