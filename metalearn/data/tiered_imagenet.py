"""tieredImageNet (Ren et al. 2018): 608 classes of ImageNet, about 780,000 images, split by 34
superclasses.

ImageNet's licence does not let anyone pass the images on: they are read from where the user has
them.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from metalearn.data.archive import Limits
from metalearn.data.class_splits import listed, packaged, superclasses
from metalearn.data.dataset import SPLITS, ImageDataset, without_rotations
from metalearn.data.files import Files, open_files
from metalearn.data.image_files import by_class, read_pixels, shared_folders
from metalearn.data.layout import named
from metalearn.data.mini_imagenet import by_number
from metalearn.data.paths import Source, check_size, image_folder_names, stored, user_images
from metalearn.data.store import ImageStore, build_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel
NAME = "tiered_imagenet"
SOURCE = Source("yours", f"{NAME}-v{VERSION}", image_folder_names(NAME))
LIMITS = Limits(members=2_000_000, total_bytes=300 << 30)  # ImageNet has 1.3 million in 140 GB

Lists = dict[str, list[str]]
"""The classes of each split."""


def tiered_imagenet(
    root: Path | None = None, archive: Path | None = None, size: int = 84
) -> ImageDataset:
    """tieredImageNet, 351/97/160 classes, at [3, size, size], squeezed to a square as its
    authors' 84x84 copy is.

    archive: a folder, zip or tar, by default `tiered_imagenet` or `tiered_imagenet.zip` in the
    data folder. It holds folders train, val and test with a folder for each class, under any
    names; or ImageNet's training images, of which those of the official classes are taken, a
    class being the WordNet number (n01440764) that an image's name, or else its folder, begins
    with. Decoded images stay in `root`, by default the cache folder, apart for an archive that is
    given, by its path and the sizes and times of its files. Groups are the superclasses, where
    the classes are named by the official numbers. Raises DataError where the images are not
    there, or are others.
    """
    check_size(NAME, size)
    name, made = f"{SOURCE.store}-{size}px", partial(decode, size=size)
    return with_splits(stored(root, name, archive, lambda _: user_images(NAME), made))


def with_splits(store: ImageStore) -> ImageDataset:
    """The official splits and groups, or those that the names of the classes begin with."""
    tops = np.array([label.split("/")[0] for label in store.classes])
    if not set(tops) <= set(SPLITS):
        return ImageDataset(NAME, store, packaged(store, NAME), superclasses(store, NAME))
    splits = {split: without_rotations(np.flatnonzero(tops == split)) for split in SPLITS}
    return ImageDataset(NAME, store, splits)


def decode(path: Path, folder: Path, size: int, official: Lists | None = None) -> ImageStore:
    """Build the store from the images under `path`. Raises DataError where they are others."""
    official = official or listed(NAME)
    with open_files(path, LIMITS) as files:
        found = _by_split(files, official) or _by_number(files, official)
        blocks = (
            np.stack([read_pixels(files, n, size, 3, "stretch") for n in sorted(found[label])])
            for label in sorted(found)
        )
        return build_store(folder, NAME, sorted(found), blocks)


def _by_split(files: Files, official: Lists) -> dict[str, list[str]] | None:
    """The images by class in folders train, val and test; None where there are no such folders.

    Classes are named `val/<folder>`, but by their folders alone where these are the official ones.
    """
    labels = by_class(files)
    start = len(shared_folders(list(labels)))
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    owner = named({label[start:].partition("/")[0] for label in labels})
    for label, names in labels.items():
        top, _, name = label[start:].partition("/")
        if top in owner:
            found[owner[top]][name] = names
    if not found:
        return None
    counts = [len(found[split]) for split in SPLITS]
    wanted = [len(official[split]) for split in SPLITS]
    if counts != wanted:
        raise DataError(
            f"{files.path} holds {_slashed(counts)} classes in train, val and test, not "
            f"{_slashed(wanted)}; give {NAME}'s own folders, or ImageNet's train folder"
        )
    every = [name for split in SPLITS for name in found[split]]
    if twice := [name for name in every if every.count(name) > 1]:
        raise DataError(f"{files.path} has class {twice[0]} in two of its splits; keep it in one")
    bare = all(set(found[split]) == set(official[split]) for split in SPLITS)
    return {
        name if bare else f"{split}/{name}": names
        for split in SPLITS
        for name, names in found[split].items()
    }


def _by_number(files: Files, official: Lists) -> dict[str, list[str]]:
    found = by_number(files)
    wanted = [wnid for split in SPLITS for wnid in official[split]]
    if missing := [wnid for wnid in wanted if wnid not in found]:
        raise DataError(
            f"{files.path} lacks {len(missing)} of the {len(wanted)} classes of {NAME}, such as "
            f"{missing[0]}; give ImageNet's train folder, or folders train, val and test"
        )
    return {wnid: found[wnid] for wnid in wanted}


def _slashed(counts: list[int]) -> str:
    return "/".join(map(str, counts))
