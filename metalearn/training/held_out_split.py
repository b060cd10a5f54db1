"""The images of the base classes, split into those that train and those that are held out."""

from typing import NamedTuple

import numpy as np

from metalearn.data import ImageDataset
from metalearn.episodes.source import generator
from metalearn.errors import UsageError

SPLIT = "train"  # the classes that pre-training sees


class Subset(NamedTuple):
    """Images of base classes. classes: `[n]`, numbered within the split, which is their label;
    examples: `[n]`, numbered within each class."""

    classes: np.ndarray
    examples: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, rows: np.ndarray) -> "Subset":
        """The images `rows` of these."""
        return Subset(self.classes[rows], self.examples[rows])


class HeldOutSplit(NamedTuple):
    """Every image of the base classes, once."""

    train: Subset
    val: Subset
    test: Subset


def hold_out(dataset: ImageDataset, val: float, test: float, seed: int = 0) -> HeldOutSplit:
    """Split the images of every base class at random: the shares `val` and `test` are held out.

    The two are those of all images, to the nearest whole one, taken from the classes in equal
    shares; at least one image of each class trains. What a class holds out depends on (data set,
    seed, class) alone. A class and its rotated ones hold out the same drawings, so that none is
    known from another angle.

    Raises UsageError for shares that leave nothing, or of which nothing comes.
    """
    check_shares(val, test)
    if not dataset.class_count(SPLIT):
        raise UsageError(f"{dataset.name} has no classes in its {SPLIT} split to pre-train on")
    index = dataset.splits[SPLIT].index
    own, place = np.unique(index, return_inverse=True)
    sizes = dataset.store.offsets[own + 1] - dataset.store.offsets[own]
    held = np.minimum(_shared(sizes, val), sizes - 1)
    tested = np.minimum(_shared(sizes, test), sizes - 1 - held)
    for name, share, count in (("val", val, held.sum()), ("test", test, tested.sum())):
        if share and not count:
            raise UsageError(
                f"held_out.{name}={share} of {sizes.sum()} images is none; use a larger share, or 0"
            )
    digest = f"{dataset.digest}/division"  # the word of older versions: the draw is theirs
    orders = [
        np.argsort(generator(digest, SPLIT, seed, int(c)).random(n), kind="stable")
        for c, n in zip(own, sizes, strict=True)
    ]
    ends = [(held[c], held[c] + tested[c]) for c in place]
    cut = [np.split(orders[c], ends[label]) for label, c in enumerate(place)]
    parts = []
    for which in (2, 0, 1):
        own = [np.sort(pieces[which]) for pieces in cut]
        labels = np.repeat(np.arange(len(own)), [len(examples) for examples in own])
        parts.append(Subset(labels, np.concatenate(own)))
    return HeldOutSplit(*parts)


def check_shares(val: float, test: float) -> None:
    """Raise UsageError where the two are no shares that leave something."""
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(
            f"held_out.val={val} and held_out.test={test} must be 0 or more, and below 1 together"
        )


def _shared(sizes: np.ndarray, share: float) -> np.ndarray:
    """Whole numbers `[C]` near `share * sizes` that sum to the nearest one of the total."""
    upto = np.floor(np.cumsum(sizes) * share + 0.5).astype(np.int64)
    return np.diff(upto, prepend=0)
