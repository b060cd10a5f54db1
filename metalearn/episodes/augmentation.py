"""Random changes of the images of an episode, the whole batch at once, where the images are.

Every image has its own random numbers, and they depend on (data set, split, seed, index) alone,
as what the episode holds does: no device, worker, batch size or resume can change them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metalearn.data import TensorDataset
from metalearn.episodes.augmix import AugMix
from metalearn.episodes.dense import DenseEpisodes
from metalearn.episodes.few_shot import FewShotEpisodes
from metalearn.episodes.mixed import MixedEpisodes
from metalearn.episodes.pixels import crop_and_flip, erase_, jitter_, rotated
from metalearn.episodes.randaugment import MAX_MAGNITUDE, randaugment, to_device
from metalearn.episodes.source import Derived, EpisodeSource, generator
from metalearn.errors import UsageError
from metalearn.types import Batch, Episodes

NUMBERS = 11  # random numbers an image, whatever is asked for: options do not shift one another


@dataclass(frozen=True)
class Augmentation:
    """What is done to images `[B, C, H, W]` in [0, 1], in this order.

    turn: each class of an episode by a random quarter turn, the same for support and queries.
    crop: a crop_and_flip of the image's size out of the image in a frame of so many black pixels.
    flip: probability of a mirror image, left for right.
    randaugment: how many of RandAugment's operations (Cubuk et al. 2020), of strength `magnitude`,
        0 to 30.
    jitter: brightness, contrast and saturation times 1 - jitter to 1 + jitter each.
    erase: probability that a rectangle becomes black (Zhong et al. 2020).

    Raises UsageError for numbers out of range.
    """

    turn: bool = False
    crop: int = 0
    flip: float = 0.0
    jitter: float = 0.0
    erase: float = 0.0
    randaugment: int = 0
    magnitude: int = 9

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation: {name}={getattr(self, name)} must be 0 to 1")
        for name in ("crop", "randaugment"):
            if getattr(self, name) < 0:
                raise UsageError(f"augmentation: {name}={getattr(self, name)} must be 0 or more")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            told = f"magnitude={self.magnitude} must be 0 to {MAX_MAGNITUDE}"
            raise UsageError(f"augmentation: {told}")

    def check(self, shape: Sequence[int]) -> None:
        """Raise UsageError where images of `shape` (C, H, W) cannot be changed so."""
        channels, height, width = shape
        if self.turn and height != width:
            raise UsageError("augmentation: only square images can be rotated; use turn=false")
        if self.randaugment and channels not in (1, 3):
            told = f"RandAugment takes 1 or 3 channels, not {channels}"
            raise UsageError(f"augmentation: {told}; use randaugment=0")

    def __call__(
        self, x: Tensor, turns: Tensor, numbers: Tensor, draws: np.ndarray | None = None
    ) -> Tensor:
        """A changed copy of `x`; `x` itself where nothing is asked for.

        turns: int64 `[B]`, quarter turns. numbers, draws: uniform in [0, 1), `[B, 11]` and, for
        RandAugment, `[operations or more, B, 2]`.
        """
        given = x
        if self.turn:
            x = rotated(x, turns)
        if self.crop or self.flip:
            x = crop_and_flip(x, self.crop, numbers[:, 0:2], numbers[:, 2] < self.flip)
        if self.randaugment:
            assert draws is not None, "RandAugment needs draws"
            x = randaugment(x, self.magnitude, draws[: self.randaugment])
        if x is given and (self.jitter or self.erase):
            x = x.clone()  # the source's own
        if self.jitter:
            jitter_(x, 1 + self.jitter * (2 * numbers[:, 3:6] - 1))
        if self.erase:
            erase_(x, numbers[:, 6] < self.erase, numbers[:, 7:10], numbers[:, 10])
        return x


Change = Augmentation | AugMix
"""What is done to images at random."""


@dataclass(frozen=True)
class AugmentedEpisodes(Derived):
    """The episodes of `source`, their images changed: an `EpisodeSource` for training.

    support, query: None leaves them as they are.
    """

    source: FewShotEpisodes | MixedEpisodes
    support: Change | None
    query: Change | None

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, changed."""
        episodes, source = self.source.batch(split, indices), self.source
        drawn = episodes.support, episodes.query
        sizes = [_sizes(batch) for batch in drawn]
        rounds = max(how.randaugment if how else 0 for how in (self.support, self.query))
        turns = []
        numbers = [np.zeros((*batch.y.shape, NUMBERS), np.float32) for batch in drawn]
        rolls = [np.zeros((rounds, *batch.y.shape, 2), np.float32) for batch in drawn]
        for task, index in enumerate(indices):
            rng = generator(f"{source.dataset.digest}/augmented", split, source.seed, index)
            # Of `random` alone: unlike `integers`, numpy does not change how it draws.
            turns.append((rng.random(source.shape[0]) * 4).astype(np.int64))
            # For the examples that there are, not for padding, which depends on the batch.
            first, all_ = sizes[0][task], sizes[0][task] + sizes[1][task]
            each = rng.random((all_, NUMBERS), np.float32)
            # After the rest and round by round, so that no number depends on how many there are.
            roll = rng.random((rounds, all_, 2), np.float32)
            for part, there in enumerate((slice(first), slice(first, all_))):
                numbers[part][task, : sizes[part][task]] = each[there]
                rolls[part][:, task, : sizes[part][task]] = roll[:, there]
        device = episodes.support.device
        turn = to_device(np.stack(turns), device)

        def changed(batch: Batch, how: Change | None, part: int) -> Batch:
            if how is None:
                return batch
            x = how(
                batch.x.flatten(0, 1),
                turn.gather(1, batch.y).flatten(),
                to_device(numbers[part], device).flatten(0, 1),
                rolls[part].reshape(rounds, batch.y.numel(), 2),
            )
            return batch._replace(x=x.view_as(batch.x))

        support, query = changed(drawn[0], self.support, 0), changed(drawn[1], self.query, 1)
        return episodes._replace(support=support, query=query)


@dataclass(frozen=True)
class WithCopies(Derived):
    """The episodes of `source`, each support set followed by `copies` changed ones of its own: an
    `EpisodeSource` for what is fine-tuned on a task alone.

    Support `[T, (1 + copies) * S, *X]`, in blocks of S; the queries stay as they are.
    """

    source: FewShotEpisodes
    augmentation: Change
    copies: int

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`."""
        episodes, source, how = self.source.batch(split, indices), self.source, self.augmentation
        support, blocks = episodes.support, []
        for task, index in enumerate(indices):
            digest = f"{source.dataset.digest}/fine-tuning"
            rng = generator(digest, split, source.seed, index)
            x = support.x[task]
            count = self.copies * len(x)
            numbers = to_device(rng.random((count, NUMBERS), np.float32), x.device)
            draws = rng.random((how.randaugment, count, 2), np.float32)
            still = torch.zeros(count, dtype=torch.int64, device=x.device)
            many = x.repeat(self.copies, *[1] * (x.ndim - 1))
            blocks.append(torch.cat([x, how(many, still, numbers, draws)]))
        rest = support._replace(x=support.y).map(lambda t: t.repeat(1, 1 + self.copies))
        return episodes._replace(support=rest._replace(x=torch.stack(blocks)))


def with_copies(source: FewShotEpisodes, how: Change | None, copies: int) -> EpisodeSource:
    """`WithCopies` of `source`; itself where nothing is to be changed. Raises UsageError where it
    has no images, or none that can be changed so."""
    if how is None or not copies:
        return source
    if isinstance(source.dataset, TensorDataset):
        raise UsageError("augmentation is for images; use augmentation=none")
    if how.turn:
        raise UsageError(
            "augmentation would turn images of a class that the support set shows as they are; use "
            "augmentation.support.turn=false"
        )
    how.check(source.dataset.image_shape)
    return WithCopies(source, how, copies)


def _sizes(batch: Batch) -> list[int]:
    """How many examples each task has, `[T]`."""
    tasks, padded = batch.y.shape
    return [padded] * tasks if batch.weight is None else batch.weight.sum(1).int().tolist()


def augmented(source: EpisodeSource, support: Change | None, query: Change | None) -> EpisodeSource:
    """`source` with its images changed. Raises UsageError where it has none, where they are not
    square and are to be turned, or have channels that RandAugment does not know."""
    if support is None and query is None:
        return source
    dense = isinstance(source, DenseEpisodes)
    of_images = isinstance(source, FewShotEpisodes | MixedEpisodes)
    if not of_images or isinstance(source.dataset, TensorDataset):
        told = "would move what boxes and masks mark" if dense else "is for images"
        raise UsageError(f"augmentation {told}; use augmentation=none")
    for part in (support, query):
        if part is not None:
            part.check(source.dataset.image_shape)
    return AugmentedEpisodes(source, support, query)
