"""A user's own images: a folder of class folders to adapt to, and images to answer.

Unlike a data set, one image that cannot be read is told, and the rest goes on.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from metalearn.data.files import TAKEN, Files, Folder, open_files
from metalearn.data.folder import Look
from metalearn.data.image_files import (
    formats,
    images_in,
    read_image,
    read_pixels,
    shared_folders,
    survey,
)
from metalearn.errors import DataError

_THUMB, _NEAR = 16, 2.0  # pixels a side, and levels of 255 by which two of one picture may differ
_STRETCHED = ("mini_imagenet", "tiered_imagenet")
_INVERTED = ("omniglot",)


class OwnImages(NamedTuple):
    """Images that could be read, in the order of their names.

    pixels: uint8 `[n, size, size, channels]`. digests: sha256 of each file. broken: a line for
    each that could not be read. white: of those of more than 8 bits, None without any.
    """

    names: list[str]
    pixels: np.ndarray
    digests: list[str]
    broken: list[str]
    white: float | None


class OwnClasses(NamedTuple):
    """The images of class folders. labels: int64 `[n]`, places in `classes`; notes: what else is
    to be told."""

    classes: list[str]
    labels: np.ndarray
    images: OwnImages
    notes: list[str]


def look_of(dataset: Mapping[str, Any], shape: Sequence[int]) -> Look:
    """How images become pixels of `shape` (C, H, W) where `dataset` is the node of a
    configuration. Raises DataError where they are not square."""
    channels, height, width = shape
    if height != width:
        raise DataError(f"the images of that run are {height}x{width}; only square ones are made")
    name = str(dataset.get("_target_")).rpartition(".")[2]
    fit = dataset.get("fit") or ("stretch" if name in _STRETCHED else "crop")
    return Look(height, channels, fit, bool(dataset.get("invert", name in _INVERTED)))


def read_images(path: Path, look: Look, white: float | None = None) -> OwnImages:
    """Every image at or below `path`, a folder, an archive or one image.

    white: the least value of white of images of more than 8 bits. Raises DataError where there is
    none, or none that can be read.
    """
    with _opened(path, "images") as files:
        names = [n for label, own in images_in(files).classes.items() for n in own]
        if not names:
            raise DataError(f"there are no images in {path}; give images=<folder of images>")
        return _whole(path, _read(files, sorted(names), look, white, shared=False))


def read_classes(path: Path, look: Look) -> OwnClasses:
    """The images of the class folders of `path`, a folder or an archive.

    A class is a folder of `path`, with all that lies in it. Raises DataError for fewer than two
    classes, or one without an image that can be read.
    """
    with _opened(path, "support") as files:
        found, others = images_in(files)
        prefix = shared_folders(list(found)) if not isinstance(files, Folder) else ""
        groups: dict[str, list[str]] = {}
        for label, names in found.items():
            groups.setdefault(label.removeprefix(prefix).split("/")[0], []).extend(names)
        loose = groups.pop(".", [])
        notes = [f"{len(loose)} images in {path} itself are of no class; left out"] if loose else []
        if unknown := sum(len(own) for ending, own in others.items() if ending not in (".txt", "")):
            notes.append(f"{unknown} other files in {path} are no images that are read; left out")
        there = sorted({*groups, *(_folders(path) if path.is_dir() else ())})
        if len(there) < 2:
            told = f"one class, {there[0]}" if there else "no class folders"
            raise DataError(f"{path} has {told}; give a folder of two or more class folders")
        names = [name for label in there for name in sorted(groups.get(label, []))]
        of = {name: number for number, label in enumerate(there) for name in groups.get(label, [])}
        images = _read(files, names, look, None, shared=True)
    labels = np.array([of[name] for name in images.names], np.int64)
    for number, label in enumerate(there):
        if not (labels == number).any():
            told = next((line for line in images.broken if f"{label}/" in line), "it is empty")
            raise DataError(
                f"the class folder {path / label} has no image that can be read ({told}); give it "
                "some, or remove it"
            )
    return OwnClasses(there, labels, images, notes)


def alike(images: OwnImages) -> np.ndarray:
    """int64 `[n]`: the number of a group for each image; images of one group are the same file, or
    differ by no more than storing a picture anew does."""
    n, side = images.pixels.shape[:2]
    cut = max(1, side // _THUMB)
    kept = images.pixels[:, : side // cut * cut, : side // cut * cut].astype(np.float32)
    small = kept.reshape(n, side // cut, cut, side // cut, cut, -1).mean((2, 4)).reshape(n, -1)
    group, digests = np.arange(n), np.array(images.digests)
    for i in range(n):
        near = np.abs(small[:i] - small[i]).mean(1) <= _NEAR
        for j in np.flatnonzero(near | (digests[:i] == digests[i])):
            group[group == group[i]] = group[j]
    return group


def _folders(path: Path) -> Iterator[str]:
    try:
        for entry in path.iterdir():
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")):
                yield entry.name
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); give another") from None


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Files]:
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"there is no {path}; correct {what}=, {TAKEN}")
    if path.is_file() and path.suffix.lower() in formats():
        yield _One(path)
        return
    with open_files(path) as files:
        if isinstance(files, Folder) and files.closed:
            raise DataError(f"cannot read {files.closed[0]}; change its permissions")
        yield files


class _One(Folder):
    """One image."""

    def __init__(self, path: Path) -> None:
        self.path = self._place = path.parent
        self.names, self.linked, self.closed = [path.name], path.is_symlink(), []


def _read(
    files: Files, names: Sequence[str], look: Look, white: float | None, shared: bool
) -> OwnImages:
    """white: the least of images of more than 8 bits. shared: whether the brightest of them says it
    for all; else each is read by its own values, and by none of the others."""
    whites: dict[str, float | None] = {}
    broken, digests, kept, grids = [], [], [], []
    for name in names:
        try:
            whites[name] = survey(files, [name]).white
        except DataError as error:
            broken.append(str(error))
    deep = [value for value in (*whites.values(), white) if value is not None]
    together = max(deep, default=None)
    channels = look.channels or 3
    for name, own in whites.items():
        top = own if own is None else together if shared else max(own, white or own)
        try:
            grids.append(read_pixels(files, name, look.size, channels, look.fit, look.invert, top))
            digests.append(hashlib.sha256(files.read(name)).hexdigest())
            kept.append(name)
        except DataError as error:
            broken.append(str(error))
    shape = (0, look.size, look.size, channels)
    pixels = np.stack(grids) if grids else np.zeros(shape, np.uint8)
    return OwnImages(kept, pixels, digests, broken, together if shared else white)


def _whole(path: Path, images: OwnImages) -> OwnImages:
    if not images.names:
        more = f", and {len(images.broken) - 1} more" if len(images.broken) > 1 else ""
        raise DataError(f"no image in {path} can be read: {images.broken[0]}{more}")
    return images


def truth_of(names: Sequence[str], classes: Sequence[str]) -> list[str] | None:
    """The class of each image where all lie in folders of the names of classes; else None."""
    found = [PurePosixPath(name).parent.name for name in names]
    return found if set(found) <= set(classes) else None


def copies_of(images: OwnImages, others: OwnImages) -> np.ndarray:
    """bool `[n]`: which of the images are the same files as some of `others`."""
    return np.isin(np.array(images.digests), np.array(others.digests))


def side_of(path: Path, most: int = 20) -> int:
    """The median of the shorter sides of some images at or below `path`, in pixels."""
    with _opened(path, "folder") as files:
        names = [name for own in images_in(files).classes.values() for name in own]
        sides = []
        for name in names[:: max(1, len(names) // most)]:
            try:
                sides.append(min(read_image(files, name).size))
            except DataError:
                continue
    return int(np.median(sides)) if sides else 0
