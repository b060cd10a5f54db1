"""Any folder or zip archive of class folders as a data set."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from metalearn.data.class_splits import by_fractions, from_files
from metalearn.data.dataset import SPLITS, Classes, ImageDataset, without_rotations
from metalearn.data.image_files import (
    Files,
    Fit,
    by_class,
    is_grey,
    open_files,
    pixels,
    read_image,
    shared_folders,
)
from metalearn.data.paths import hash_file
from metalearn.data.store import ImageStore, build_store, open_store
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder

VERSION = 1  # raise it whenever a change below changes a pixel
SPLIT_FOLDERS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Folders that are splits, by their names."""


def folder(
    root: str | Path | None = None,
    size: int = 84,
    channels: int | None = None,
    fit: Fit = "crop",
    invert: bool = False,
    splits: str | Path | None = None,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    cache: Path | None = None,
) -> ImageDataset:
    """The images under `root`, a folder or a zip archive: a class for each folder that holds
    some, named by its path, at [channels, size, size].

    channels: 1 or 3; None takes 1 where the first image of every class is grey.
    fit: "crop" keeps the middle square, "stretch" all of it. invert: 255 - pixel, for dark ink.
    splits: a folder with `train.txt`, `val.txt` and `test.txt`, a class name a line; classes
        that stand in none are left out. Without it, folders named train, val and test at the top
        are the splits; else `seed` shuffles the classes and `fractions` cuts them, a fraction
        of 0 leaving its split without classes.
    cache: where the decoded images are kept, by default the cache folder. An image that is
        added, removed or changed under `root` is noticed.

    Raises DataError where there are no images, or one that cannot be read, and for splits that
    share a class or name one that is not there.
    """
    if root is None:
        raise DataError(
            "dataset.root is missing; use dataset.root=<folder or zip of class folders>"
        )
    if size < 1 or channels not in (None, 1, 3) or fit not in ("crop", "stretch"):
        raise DataError(
            f"folder: size={size}, channels={channels}, fit={fit} must be 1 or more, 1 or 3, and "
            "crop or stretch"
        )
    path = Path(root).expanduser()
    with open_files(path) as files:
        classes = by_class(files)
        if not classes:
            raise DataError(
                f"there are no images in {path}; it needs a folder for each class, with PNG or "
                "JPEG files"
            )
        if "." in classes:
            raise DataError(
                f"{classes['.'][0]} lies in {path} itself; put every image into the folder of "
                "its class"
            )
        # The prefix that all share says nothing: a zip of one folder is that folder.
        prefix = shared_folders(list(classes))
        classes = {label[len(prefix) :]: names for label, names in classes.items()}
        settings = f"{VERSION} {size} {channels} {fit} {invert}"
        key = _digest(path, files, classes, settings)
        place = (cache or cache_folder()) / f"folder-{_safe(path.stem)}-{key[:16]}"
        store = open_store(place) if place.exists() else None
        if store is None:
            depth = channels or _channels(files, classes)
            blocks = (
                np.stack([pixels(read_image(files, n), size, depth, fit, invert) for n in names])
                for names in classes.values()
            )
            store = build_store(place, path.stem, list(classes), blocks)
    class_splits = _splits(store, splits, fractions, seed)
    return ImageDataset(path.stem, store, class_splits, _groups(store.classes))


def _groups(labels: Sequence[str]) -> list[str] | None:
    """The first folder of every class, below train, val and test; None where one has none."""
    tops = [label.partition("/") for label in labels]
    if {top.lower() for top, _, _ in tops} <= set(SPLIT_FOLDERS):
        tops = [rest.partition("/") for _, _, rest in tops]
    return [top for top, _, _ in tops] if all(rest for _, _, rest in tops) else None


def _splits(
    store: ImageStore, lists: str | Path | None, fractions: Sequence[float], seed: int
) -> Mapping[str, Classes]:
    if lists is not None:
        return from_files(store, Path(lists).expanduser())
    tops = [label.split("/")[0].lower() for label in store.classes]
    if set(tops) <= set(SPLIT_FOLDERS):
        return _by_top(store, [SPLIT_FOLDERS[top] for top in tops])
    return by_fractions(store, fractions, seed)


def _by_top(store: ImageStore, owners: list[str]) -> dict[str, Classes]:
    if missing := [split for split in SPLITS if split not in owners]:
        raise DataError(
            f"{store.name} has no folder {' and '.join(missing)} beside {', '.join(set(owners))}; "
            "add it, or give lists with dataset.splits=<folder>"
        )
    seen: dict[str, str] = {}
    for label, owner in zip(store.classes, owners, strict=True):
        name = label.partition("/")[2]
        if seen.setdefault(name, owner) != owner:
            raise DataError(
                f"class {name} of {store.name} is in both {seen[name]} and {owner}; few-shot "
                "splits have different classes: use dataset.root on one of these folders"
            )
    where = np.array(owners)
    return {split: without_rotations(np.flatnonzero(where == split)) for split in SPLITS}


def _channels(files: Files, classes: Mapping[str, Sequence[str]]) -> int:
    return 1 if all(is_grey(read_image(files, names[0])) for names in classes.values()) else 3


def _digest(path: Path, files: Files, classes: Mapping[str, Sequence[str]], settings: str) -> str:
    """Of what decides the store's content: names, sizes and times of the files, the settings."""
    total = hashlib.sha256(f"{settings}\n".encode())
    if path.is_file():
        hash_file(total, path)
    for names in classes.values():
        for name in names:
            total.update(f"{name}\n".encode(errors="surrogateescape"))
            if path.is_dir():
                hash_file(total, path / name)
    return total.hexdigest()


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40] or "images"
