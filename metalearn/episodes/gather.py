"""From the numbers of an episode's examples to its images, a meta-batch at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.data import ImageDataset, Mixture, TensorDataset
from metalearn.episodes.transform import ImageTransform
from metalearn.types import Batch, Episodes, Inputs


class EpisodeIds(NamedTuple):
    """Which examples an episode holds. classes: `[N]`, numbered within the split;
    support: `[N, K]` and query: `[N, Q/N]`, numbered within each class.

    A class with fewer than K support examples, or fewer queries than another, has -1 in the places
    that it leaves.
    member: the data set, where there are several.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    member: str = ""

    def encode(self, varied: bool = False) -> bytes:
        """The numbers as little-endian int64; their shape before them where it varies."""
        numbers = b"".join(part.astype("<i8").tobytes() for part in self[:3])
        shape = f"{self.support.shape} {self.query.shape} " if varied else ""
        return f"{self.member}{shape}".encode() + numbers


def gather(
    dataset: ImageDataset | Mixture | TensorDataset,
    split: str,
    drawn: Sequence[EpisodeIds],
    device: torch.device | None = None,
    varied: bool = False,
) -> Episodes:
    """The images of episodes, pixels scaled to [0, 1]: support `[T, S, C, H, W]`.

    Examples go shot by shot, one of every class. varied: the episodes are not of one shape, and
    get padding of weight 0 at their end. device: where the images are kept and gathered, None for
    the host, straight from the store. Of a `TensorDataset`, its tensors as they are.
    """
    if varied or isinstance(dataset, Mixture | TensorDataset):
        return _one_by_one(dataset, split, drawn, device, varied)
    classes = np.stack([ids.classes for ids in drawn])

    def examples(which: Sequence[np.ndarray]) -> Batch:
        labels, numbers = in_order(which)
        of = np.take_along_axis(classes, labels, 1)
        images = _images(dataset, split, of, numbers, device)
        return Batch(scaled(images), torch.from_numpy(labels).to(images.device))

    support, query = ([ids.support for ids in drawn], [ids.query for ids in drawn])
    return Episodes(examples(support), examples(query))


def in_order(which: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and numbers `[T, B]` of the examples `[N, K]` of each of T tasks, B of every one: shot
    by shot, one of every class that has so many."""
    if len({numbers.shape for numbers in which}) == 1 and (whole := np.stack(which)).min() >= 0:
        tasks, ways, each = whole.shape
        return np.tile(np.arange(ways), (tasks, each)), whole.transpose(0, 2, 1).reshape(tasks, -1)

    def one(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = numbers.T >= 0
        labels = np.broadcast_to(np.arange(len(numbers)), there.shape)[there]
        return labels, numbers.T[there]

    labels, numbers = zip(*map(one, which), strict=True)
    return np.stack(labels), np.stack(numbers)


def scaled(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], the nearest to pixel / 255 on every device."""
    if pixels.device.type == "cpu":
        # Faster than torch, and leaves torch's threads to whoever computes meanwhile.
        return torch.from_numpy(np.divide(pixels.numpy(), np.float32(255)))
    # By a tensor: a plain 255 CUDA turns into a factor of 1/255, a bit off for half the values.
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


def inputs_of(
    dataset: ImageDataset | TensorDataset, split: str, classes: np.ndarray, examples: np.ndarray
) -> tuple[Inputs, dict[str, Tensor]]:
    """What a network is given of single examples, `[n, ...]`, and their further targets.

    classes, examples: int64 `[n]`, numbered within `split` and within the class.
    """
    if isinstance(dataset, TensorDataset):
        return dataset.examples(split, classes, examples)
    return scaled(torch.from_numpy(dataset.images(split, classes, examples))), {}


def padded_size(examples: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: unequal tasks come in few sizes, so that
    what is measured, compiled or allocated for one serves another."""
    power = 1 << max(examples - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and examples <= power * 3 // 4 else power


def _images(
    dataset: ImageDataset,
    split: str,
    classes: np.ndarray,
    examples: np.ndarray,
    device: torch.device | None,
) -> Tensor:
    if device is None:
        return torch.from_numpy(dataset.images(split, classes, examples))
    return dataset.images_on(device, split, classes, examples)


def _one_by_one(
    dataset: ImageDataset | Mixture | TensorDataset,
    split: str,
    drawn: Sequence[EpisodeIds],
    device: torch.device | None,
    varied: bool,
) -> Episodes:
    """Episodes that differ in size, come from several data sets or are of dicts of tensors."""
    fit = ImageTransform()
    if isinstance(dataset, Mixture):
        fit = ImageTransform(dataset.size, dataset.channels)

    def examples(ids: EpisodeIds, which: np.ndarray) -> Batch:
        (found,), (numbers,) = in_order([which])
        classes, labels = ids.classes[found], torch.from_numpy(found)
        weight = torch.ones(len(labels))
        if isinstance(dataset, TensorDataset):
            x, targets = dataset.examples(split, classes, numbers)
            return Batch(x, dataset.labelled(labels, targets), weight)
        images = _images(dataset.member(ids.member), split, classes, numbers, device)
        return Batch(fit(scaled(images)), labels, weight)

    def stacked(parts: Sequence[Batch]) -> Batch:
        longest, on = max(batch.shape[0] for batch in parts), parts[0].device
        length = padded_size(longest) if varied else longest
        found: list[list[Tensor]] = []
        for batch in parts:
            tensors: list[Tensor] = []
            batch.map(lambda t, tensors=tensors: (tensors.append(t), t)[1])
            found.append(tensors)
        columns = iter([_padded(column, length) for column in zip(*found, strict=True)])
        batch = parts[0].map(lambda _: next(columns).to(on))
        return batch if varied else batch._replace(weight=None)

    return Episodes(
        stacked([examples(ids, ids.support) for ids in drawn]),
        stacked([examples(ids, ids.query) for ids in drawn]),
    )


def _padded(tensors: Sequence[Tensor], length: int) -> Tensor:
    """`[T, length, ...]` of tensors `[B, ...]`, zeros behind the shorter ones."""
    rows = tensors[0].new_zeros(len(tensors), length, *tensors[0].shape[1:])
    for row, t in zip(rows, tensors, strict=True):
        row[: len(t)] = t
    return rows
