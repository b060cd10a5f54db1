"""CUB-200-2011 (Wah et al. 2011): 200 species of birds, about 59 photographs each."""

from functools import partial
from pathlib import Path

import numpy as np

from metalearn.data.dataset import ImageDataset, without_rotations
from metalearn.data.files import open_files
from metalearn.data.image_files import by_class, read_pixels
from metalearn.data.paths import Source, check_size, official, stored
from metalearn.data.store import ImageStore, build_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel
CLASSES = 200
OFFICIAL = "CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
MIRRORS = (
    f"https://data.caltech.edu/records/65de6-vp158/files/{OFFICIAL}",
    f"https://s3.amazonaws.com/fast-ai-imageclas/{OFFICIAL}",
)
SOURCE = Source("download", f"cub-v{VERSION}", (f"cub/{OFFICIAL}",))


def cub(root: Path | None = None, archive: Path | None = None, size: int = 84) -> ImageDataset:
    """CUB, 100/50/50 species, the middle square at [3, size, size].

    The split is that of Chen et al. 2019: of the species in order, every second trains, and the
    others alternate between val and test. archive: `CUB_200_2011.tgz`, or a folder or zip of the
    same files; by default it is found in `cub/` of the data folder, or downloaded to `root` (the
    cache folder), where the decoded images stay; for a given `archive` under a name of its path
    and the sizes and times of its files. Raises DataError where it is missing or is not CUB.
    """
    check_size("cub", size)
    name, made = f"{SOURCE.store}-{size}px", partial(decode, size=size)
    store = stored(root, name, archive, find_archive, made)
    every = np.arange(len(store.classes))
    parts = {"train": every[::2], "val": every[1::4], "test": every[3::4]}
    splits = {split: without_rotations(index) for split, index in parts.items()}
    return ImageDataset("cub", store, splits)


def find_archive(root: Path) -> Path:
    """The user's own archive, else the official one, downloaded to `root` before or now."""
    return official(SOURCE.archives, root, MIRRORS, MD5)


def decode(path: Path, folder: Path, size: int, classes: int = CLASSES) -> ImageStore:
    """Build the store from the images in `.../images/<number>.<species>/`."""
    with open_files(path) as files:
        folders = ((label.split("/"), names) for label, names in by_class(files).items())
        found = {path[-1]: names for path, names in folders if path[-2:-1] == ["images"]}
        if len(found) != classes:
            raise DataError(
                f"{path} holds {len(found)} species under images/, not {classes}; "
                f"put {OFFICIAL} in its place"
            )
        blocks = (
            np.stack([read_pixels(files, name, size, 3) for name in found[label]])
            for label in sorted(found)
        )
        return build_store(folder, "cub", sorted(found), blocks)
