"""miniImageNet (Vinyals et al. 2016) with the split of Ravi and Larochelle 2017: 100 classes of 600
images of ImageNet at 84x84.

ImageNet's licence does not let anyone pass the images on: they are read from where the user has
them.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from metalearn.data.dataset import ImageDataset
from metalearn.data.parting import packaged
from metalearn.data.paths import data_folder
from metalearn.data.pictures import by_class, open_files, picture, pixels
from metalearn.data.store import build_store, open_store
from metalearn.errors import DataError
from metalearn.files import cache_folder

VERSION = 1  # raise it whenever a change below changes a pixel
CLASSES, EXAMPLES = 100, 600
WNID = re.compile(r"n\d{8}")


def mini_imagenet(
    root: Path | None = None, archive: Path | None = None, size: int = 84
) -> ImageDataset:
    """miniImageNet, 64/16/20 classes, at [3, size, size], squeezed to a square as Ravi's script
    does.

    archive: a folder, zip or tar of the 60,000 images, by default `mini_imagenet` or
    `mini_imagenet.zip` in the data folder. A class is the WordNet number (n01532829) that a
    picture's name, or else its folder, begins with. Decoded images stay in `root`, by default the
    cache folder. Raises DataError where the images are not there, or are others.
    """
    if size < 1:
        raise DataError(f"mini_imagenet: size must be 1 or more, not {size}")
    folder = (Path(root) if root else cache_folder()) / f"mini_imagenet-v{VERSION}-{size}px"
    if folder.exists():
        store = open_store(folder)
    else:
        store = decode(Path(archive).expanduser() if archive else find_images(), folder, size)
    return ImageDataset("mini_imagenet", store, packaged(store, "mini_imagenet"))


def find_images() -> Path:
    """The user's own images in the data folder. Raises DataError where there are none."""
    data = data_folder()
    for name in ("mini_imagenet", "mini_imagenet.zip", "mini_imagenet.tar.gz"):
        if data is not None and (data / name).exists():
            return data / name
    raise DataError(
        "miniImageNet cannot be downloaded freely; give its images with dataset.archive=<folder or "
        "zip>, or put them at mini_imagenet/ in a folder named by METALEARN_DATA"
    )


def decode(path: Path, folder: Path, size: int, classes: int = CLASSES, examples: int = EXAMPLES):
    """Build the store from the images under `path`. Raises DataError where they are others."""
    with open_files(path) as files:
        found: dict[str, list[str]] = defaultdict(list)
        for names in by_class(files).values():
            for name in names:
                if wnid := _wnid(name):
                    found[wnid].append(name)
        counts = sorted({len(names) for names in found.values()})
        if len(found) != classes or counts != [examples]:
            told = f"{counts[0]} to {counts[-1]}" if counts else "no"
            raise DataError(
                f"{path} holds {len(found)} classes of {told} images, not {classes} of {examples}; "
                "give miniImageNet's own images"
            )
        blocks = (
            np.stack([pixels(picture(files, n), size, 3, "stretch") for n in sorted(found[wnid])])
            for wnid in sorted(found)
        )
        return build_store(folder, "mini_imagenet", sorted(found), blocks)


def _wnid(name: str) -> str | None:
    """Of the picture's own name, else of the nearest folder's."""
    parts = reversed(name.split("/"))
    return next((match[0] for part in parts if (match := WNID.match(part))), None)
