"""A store with its class splits, and the gathering of images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.data.device import DeviceImages
from metalearn.data.scenes import Scene
from metalearn.data.store import ImageStore
from metalearn.errors import DataError
from metalearn.runtime.memory import free_memory_bytes

SPLITS = ("train", "val", "test")


class Classes(NamedTuple):
    """The classes of one split: `index` int64 [C] into the store, `quarter_turns` int64 [C].

    A class rotated by 90, 180 or 270 degrees is a further class (Vinyals et al. 2016, 4.1.1);
    rotations are counter-clockwise.
    """

    index: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    quarter_turns: np.ndarray

    def names(self, store: ImageStore) -> list[str]:
        """Names such as `Korean/character05/rot090`; without `/rotDDD` where none is rotated."""
        names = [store.classes[i] for i in self.index]
        if not self.quarter_turns.any():
            return names
        return [f"{n}/rot{90 * t:03d}" for n, t in zip(names, self.quarter_turns, strict=True)]


def without_rotations(index: np.ndarray) -> Classes:
    """The classes `index` [C], not rotated."""
    index = np.asarray(index, dtype=np.int64)
    return Classes(index, np.zeros_like(index))


def with_rotations(index: np.ndarray) -> Classes:
    """Each of the classes `index` [C] in its four rotations, side by side: [4C]."""
    index = np.asarray(index, dtype=np.int64)
    return Classes(np.repeat(index, 4), np.tile(np.arange(4, dtype=np.int64), len(index)))


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A store and its three class splits. No class is in two of them, rotated or not.

    A split may have no classes, where a data set is used for testing alone.
    groups: the superclass of each class of the store (an alphabet, a family), None without any.
    scene: how several images make one picture, None where each is one.
    notes: what of the user's files was left out, and how they were understood.
    """

    name: str
    store: ImageStore
    splits: Mapping[str, Classes]
    groups: Sequence[str] | None = None
    notes: Sequence[str] = ()
    scene: Scene | None = None
    _held: dict[torch.device, DeviceImages] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises DataError for wrong splits: other names, classes shared, repeated or unknown."""
        if self.groups is not None and len(self.groups) != len(self.store.classes):
            raise DataError(f"{self.name}: every class needs one group, or none has any")
        if set(self.splits) != set(SPLITS):
            raise DataError(f"{self.name}: splits are {sorted(self.splits)}, not {list(SPLITS)}")
        owner = np.full(len(self.store.classes), -1)
        for number, split in enumerate(SPLITS):
            self._check(split)
            index = self.splits[split].index
            clash = index[(owner[index] != -1)]
            if len(clash):
                raise DataError(
                    f"{self.name}: class {self.store.classes[clash[0]]} is in both "
                    f"{SPLITS[owner[clash[0]]]} and {split}; keep each class in one split"
                )
            owner[index] = number
        if (owner == -1).all():
            raise DataError(f"{self.name}: no split has a class; give one of them some")

    def _check(self, split: str) -> None:
        index, rotations = self.splits[split]
        if index.ndim != 1 or index.shape != rotations.shape:
            raise DataError(f"{self.name}: split {split} needs index and rotations of one length")
        if not len(index):
            return
        if index.min() < 0 or index.max() >= len(self.store.classes):
            raise DataError(f"{self.name}: split {split} names a class that the store lacks")
        if rotations.min() < 0 or rotations.max() > 3:
            raise DataError(f"{self.name}: quarter turns of split {split} must be 0 to 3")
        if len(np.unique(index * 4 + rotations)) != len(index):
            raise DataError(f"{self.name}: split {split} holds a class twice")
        height, width = self.store.images.shape[1:3]
        if height != width and rotations.any():
            raise DataError(f"{self.name}: only square images can be rotated, not {height}x{width}")

    @cached_property
    def digest(self) -> str:
        """sha256 over the store's digest and the splits, in hexadecimal."""
        total = hashlib.sha256(self.store.digest.encode())
        for split in SPLITS:
            index, rotations = self.splits[split]
            total.update(f"{split} {len(index)}\n".encode())
            total.update(np.stack([index, rotations]).astype("<i8").tobytes())
        if self.scene is not None:
            total.update(repr(self.scene).encode())
        return total.hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        height, width, channels = self.store.images.shape[1:]
        if self.scene is not None:
            height = width = self.scene.size
        return channels, height, width

    def class_count(self, split: str) -> int:
        """How many classes `split` has, rotated ones included."""
        return len(self._split(split).index)

    def class_names(self, split: str) -> list[str]:
        """The names of the classes of `split`, in its order."""
        return self._split(split).names(self.store)

    @cached_property
    def sizes(self) -> dict[str, np.ndarray]:
        """By split, how many examples each class has: int64 `[C]`."""
        sizes = np.diff(self.store.offsets)
        return {split: sizes[index] for split, (index, _) in self.splits.items()}

    def examples_in(self, split: str, classes: np.ndarray) -> np.ndarray:
        """How many examples each of `classes` (int, any shape, numbered within `split`) has."""
        self._split(split)
        return self.sizes[split][classes]

    def member(self, name: str) -> "ImageDataset":
        """This data set itself, as `Mixture.member` gives one of several."""
        return self

    def images(self, split: str, classes: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Gather images: uint8 [..., C, H, W], where `...` is what the two indices broadcast to.

        `classes` counts within `split`, `examples` within the class. Raises DataError for an
        example that a class does not have, or pictures of several classes; IndexError for a class
        that the split does not have.
        """
        self._check_single()
        return self.tiles(split, classes, examples)

    def tiles(self, split: str, classes: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """As `images`, of which `scene` makes pictures where there is one."""
        rows, rotations = self._rows(split, classes, examples)
        shape, rows, rotations = rows.shape, rows.reshape(-1), rotations.reshape(-1)
        # A plain view: fancy indexing of np.memmap itself is slower.
        found = self.store.images.view(np.ndarray)[rows].transpose(0, 3, 1, 2)
        found = np.ascontiguousarray(found)
        for quarters in (1, 2, 3):
            which = np.flatnonzero(rotations == quarters)
            if len(which):
                found[which] = np.rot90(found[which], quarters, axes=(2, 3))
        return found.reshape(*shape, *found.shape[1:])

    def beside(
        self, name: str, split: str, classes: np.ndarray, examples: np.ndarray
    ) -> np.ndarray:
        """What the store has beside its images, such as `boxes`, of those that `images` gives of
        the same arguments: [..., *Y]. Raises DataError where there is none, else as `images`."""
        if name not in self.store.beside:
            raise DataError(f"{self.name} has no {name} beside its images")
        rows, rotations = self._rows(split, classes, examples)
        if rotations.any():
            raise DataError(f"{self.name}: {name} of rotated classes are not known")
        return self.store.beside[name][rows]

    def images_on(
        self, device: torch.device, split: str, classes: np.ndarray, examples: np.ndarray
    ) -> Tensor:
        """As `images`, gathered on `device`; all images are copied there once."""
        self._check_single()
        rows, rotations = self._rows(split, classes, examples)
        if device not in self._held:
            self._held[device] = DeviceImages(self.store, self._rotations, device)
        return self._held[device].gather(rows, rotations)

    def fits(self, device: torch.device, among: int = 1) -> bool:
        """Whether the images would take at most a quarter of the free memory of `device`, shared by
        `among` data sets."""
        free = free_memory_bytes(device)
        needed = among * len(self._rotations) * self.store.images.nbytes
        return free is not None and 4 * needed <= free

    def _check_single(self) -> None:
        if self.scene is not None:
            raise DataError(
                f"{self.name} has pictures of several classes; use task=detection or "
                "task=segmentation of metalearn train, or dataset=glyphs"
            )

    @property
    def _rotations(self) -> list[int]:
        """The quarter turns that the splits have, ascending."""
        return sorted({int(t) for split in SPLITS for t in self.splits[split].quarter_turns})

    def _rows(
        self, split: str, classes: np.ndarray, examples: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the store and quarter turns, both `[...]`; raises as `images` does."""
        index, rotations = self._split(split)
        classes, examples = np.broadcast_arrays(classes, examples)
        if (classes < 0).any():
            raise IndexError("a class number below 0")
        index, rotations = index[classes], rotations[classes]
        rows = self.store.offsets[index] + examples
        if (examples < 0).any() or (rows >= self.store.offsets[index + 1]).any():
            raise DataError(f"{self.name}: split {split} lacks an example that was requested")
        return rows, rotations

    def _split(self, split: str) -> Classes:
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}; choose from {list(SPLITS)}")
        return self.splits[split]
