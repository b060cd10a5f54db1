"""Random changes of the images of an episode, the whole batch at once, where the images are.

Every image has its own random numbers, and they depend on (data set, split, seed, index) alone,
as what the episode holds does: no device, worker, batch size or resume can change them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metalearn.episodes.few_shot import FewShotEpisodes
from metalearn.episodes.source import EpisodeSource, generator
from metalearn.errors import UsageError
from metalearn.types import Batch, Episodes

NUMBERS = 11  # random numbers an image, whatever is asked for: options do not shift one another
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as in torchvision
ERASED = (0.02, 0.33)  # share of the image; Zhong et al. 2020
RATIO = (0.3, 1 / 0.3)  # height over width of what is erased


@dataclass(frozen=True)
class Augmentation:
    """What is done to images `[B, C, H, W]` in [0, 1], in this order.

    turn: each class of an episode by a random quarter turn, the same for support and queries.
    crop: a window of the image's size out of the image in a frame of so many black pixels.
    flip: probability of a mirror image, left for right.
    jitter: brightness, contrast and saturation times 1 - jitter to 1 + jitter each.
    erase: probability that a rectangle becomes black (Zhong et al. 2020).

    Raises UsageError for numbers out of range.
    """

    turn: bool = False
    crop: int = 0
    flip: float = 0.0
    jitter: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation: {name}={getattr(self, name)} must be 0 to 1")
        if self.crop < 0:
            raise UsageError(f"augmentation: crop={self.crop} must be 0 or more")

    def __call__(self, x: Tensor, turns: Tensor, numbers: Tensor) -> Tensor:
        """`x` changed. turns: int64 `[B]`, quarter turns; numbers: uniform in [0, 1), `[B, 11]`."""
        if self.turn:
            x = _turned(x, turns)
        if self.crop or self.flip:
            x = _window(x, self.crop, numbers[:, 0:2], numbers[:, 2] < self.flip)
        if self.jitter:
            x = _jittered(x, 1 + self.jitter * (2 * numbers[:, 3:6] - 1))
        if self.erase:
            x = _erased(x, numbers[:, 6] < self.erase, numbers[:, 7:10], numbers[:, 10])
        return x


@dataclass(frozen=True)
class AugmentedEpisodes:
    """The episodes of `source`, their images changed: an `EpisodeSource` for training.

    support, query: None leaves them as they are.
    """

    source: FewShotEpisodes
    support: Augmentation | None
    query: Augmentation | None

    @property
    def shape(self) -> tuple[int | None, int, int]:
        """That of the source."""
        return self.source.shape

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        self.source.check(split)

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, changed."""
        drawn = self.source.batch(split, indices)
        examples = [batch.y.shape[1] for batch in drawn]
        ways, source = self.source.ways, self.source
        turns, numbers = [], []
        for index in indices:
            rng = generator(f"{source.dataset.digest}/augmented", split, source.seed, index)
            # Of `random` alone: unlike `integers`, numpy does not change how it draws.
            turns.append((rng.random(ways) * 4).astype(np.int64))
            numbers.append(rng.random((sum(examples), NUMBERS), np.float32))
        device = drawn.support.x.device
        turn = torch.from_numpy(np.stack(turns)).to(device)
        parts = torch.from_numpy(np.stack(numbers)).to(device).split(examples, dim=1)

        def changed(batch: Batch, how: Augmentation | None, numbers: Tensor) -> Batch:
            if how is None:
                return batch
            x = how(batch.x.flatten(0, 1), turn.gather(1, batch.y).flatten(), numbers.flatten(0, 1))
            return batch._replace(x=x.view_as(batch.x))

        return Episodes(
            changed(drawn.support, self.support, parts[0]),
            changed(drawn.query, self.query, parts[1]),
        )

    def fingerprint(self, split: str, index: int) -> bytes:
        """That of the source: which images, not how they were changed."""
        return self.source.fingerprint(split, index)


def augmented(
    source: EpisodeSource, support: Augmentation | None, query: Augmentation | None
) -> EpisodeSource:
    """`source` with its images changed. Raises UsageError where it has none, or where they are
    not square and are to be turned."""
    if support is None and query is None:
        return source
    if not isinstance(source, FewShotEpisodes):
        raise UsageError("augmentation is for images; use augmentation=none")
    _, height, width = source.dataset.image_shape
    if height != width and any(part and part.turn for part in (support, query)):
        raise UsageError("augmentation: only square images can turn; use turn=false")
    return AugmentedEpisodes(source, support, query)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Image b turned counter-clockwise by `turns[b]` quarters."""
    which = turns.view(-1, 1, 1, 1)
    for quarters in (1, 2, 3):
        x = torch.where(which == quarters, x.rot90(quarters, (2, 3)), x)
    return x


def _window(x: Tensor, frame: int, place: Tensor, mirrored: Tensor) -> Tensor:
    """One gather for crop and mirror. place: `[B, 2]`, of the window in the frame."""
    b, c, h, w = x.shape
    shift = (place * (2 * frame + 1)).long() - frame
    rows = torch.arange(h, device=x.device) + shift[:, :1]
    columns = torch.arange(w, device=x.device).expand(b, w)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + shift[:, 1:]
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
    flat = rows.clamp(0, h - 1)[:, :, None] * w + columns.clamp(0, w - 1)[:, None, :]
    index = flat.view(b, 1, h * w).expand(b, c, h * w)
    return x.flatten(2).gather(2, index).view_as(x) * inside[:, None]


def _jittered(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation times `factors` `[B, 3]`, as torchvision defines them."""
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
    x = (x * brightness).clamp(0, 1)
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    x = torch.lerp(mean, x, contrast).clamp(0, 1)
    if x.shape[1] == 3:
        x = torch.lerp(_grey(x), x, saturation).clamp(0, 1)
    return x


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x
    return (x * x.new_tensor(GREY).view(3, 1, 1)).sum(1, keepdim=True)


def _erased(x: Tensor, chosen: Tensor, place: Tensor, shape: Tensor) -> Tensor:
    """A black rectangle where `chosen` `[B]`. place: area, row, column `[B, 3]`; shape: `[B]`."""
    h, w = x.shape[-2:]
    area = (ERASED[0] + (ERASED[1] - ERASED[0]) * place[:, 0]) * h * w
    low, high = np.log(RATIO)
    ratio = (low + (high - low) * shape).exp()
    height = (area * ratio).sqrt().clamp(1, h).round()
    width = (area / ratio).sqrt().clamp(1, w).round()
    top = (place[:, 1] * (h - height + 1)).floor()
    left = (place[:, 2] * (w - width + 1)).floor()
    row, column = torch.arange(h, device=x.device), torch.arange(w, device=x.device)

    def between(at: Tensor, start: Tensor, length: Tensor) -> Tensor:
        return (at >= start[:, None]) & (at < (start + length)[:, None])

    hole = between(row, top, height)[:, :, None] & between(column, left, width)[:, None, :]
    return x.masked_fill((hole & chosen[:, None, None])[:, None], 0.0)
