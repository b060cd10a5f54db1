"""miniImageNet (Vinyals et al. 2016) with the split of Ravi and Larochelle 2017: 100 classes of 600
images of ImageNet at 84x84.

ImageNet's licence does not let anyone pass the images on: they are read from where the user has
them.
"""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from metalearn.data.class_splits import packaged
from metalearn.data.dataset import ImageDataset
from metalearn.data.files import Files, open_files
from metalearn.data.image_files import by_class, read_pixels
from metalearn.data.paths import Source, check_size, image_folder_names, stored, user_images
from metalearn.data.store import ImageStore, build_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel
CLASSES, EXAMPLES = 100, 600
SOURCE = Source("yours", f"mini_imagenet-v{VERSION}", image_folder_names("mini_imagenet"))
WNID = re.compile(r"n\d{8}")


def mini_imagenet(
    root: Path | None = None, archive: Path | None = None, size: int = 84
) -> ImageDataset:
    """miniImageNet, 64/16/20 classes, at [3, size, size], squeezed to a square as Ravi's script
    does.

    archive: a folder, zip or tar of the 60,000 images, by default `mini_imagenet` or
    `mini_imagenet.zip` in the data folder. A class is the WordNet number (n01532829) that a
    image's name, or else its folder, begins with. Decoded images stay in `root`, by default the
    cache folder, apart for an archive that is given, by its path and the sizes and times of its
    files. Raises DataError where the images are not there, or are others.
    """
    check_size("mini_imagenet", size)
    name, made = f"{SOURCE.store}-{size}px", partial(decode, size=size)
    store = stored(root, name, archive, lambda _: user_images("mini_imagenet"), made)
    return ImageDataset("mini_imagenet", store, packaged(store, "mini_imagenet"))


def decode(
    path: Path, folder: Path, size: int, classes: int = CLASSES, examples: int = EXAMPLES
) -> ImageStore:
    """Build the store from the images under `path`. Raises DataError where they are others."""
    with open_files(path) as files:
        found = by_number(files)
        counts = sorted({len(names) for names in found.values()})
        if len(found) != classes or counts != [examples]:
            each = f"{counts[0]} to {counts[-1]}" if counts else "no"
            raise DataError(
                f"{path} holds {len(found)} classes of {each} images, not {classes} of "
                f"{examples}; give miniImageNet's own images, or its pickles to dataset=folder"
            )
        blocks = (
            np.stack([read_pixels(files, n, size, 3, "stretch") for n in sorted(found[wnid])])
            for wnid in sorted(found)
        )
        return build_store(folder, "mini_imagenet", sorted(found), blocks)


def by_number(files: Files) -> dict[str, list[str]]:
    """The images by the WordNet number in their names or folders; others are left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for names in by_class(files).values():
        for name in names:
            # That of the file name, else of the nearest folder's.
            parts = reversed(name.split("/"))
            if wnid := next((match[0] for part in parts if (match := WNID.match(part))), None):
                found[wnid].append(name)
    return found
