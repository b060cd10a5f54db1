"""Tiny-ImageNet (Le, Yang 2015): images of ImageNet at 64x64, each with one box; of its 200 classes
the 123 that tieredImageNet (Ren et al. 2018) has too, by its split of superclasses.

ImageNet's licence does not let anyone pass the images on: they are read from where the user has
them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from metalearn.data.class_splits import listed, packaged, superclasses
from metalearn.data.dataset import ImageDataset
from metalearn.data.files import Files, open_files, text
from metalearn.data.image_files import by_class, pixels, read_image
from metalearn.data.paths import Source, check_size, image_folder_names, stored, user_images
from metalearn.data.store import ImageStore, build_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel or a box
NAME, SIDE = "tiny_imagenet", 64
_OFFICIAL = "tiny-imagenet-200"
SOURCE = Source(
    "yours",
    f"{NAME}-v{VERSION}",
    (
        f"{NAME}/{NAME}.zip",
        f"{NAME}/{_OFFICIAL}.zip",
        *image_folder_names(_OFFICIAL),
        f"{NAME}/train",
        f"{NAME}/{_OFFICIAL}",
        *image_folder_names(NAME)[1:],
    ),
)

Boxes = dict[str, tuple[int, int, int, int]]
"""By image file: the first and last column and row, x0, y0, x1, y1, both counted in."""


def tiny_imagenet(
    root: Path | None = None, archive: Path | None = None, size: int = SIDE, boxes: bool = True
) -> ImageDataset:
    """Tiny-ImageNet, 61/17/45 classes, at [3, size, size].

    archive: `tiny-imagenet-200.zip`, or a folder, zip or tar of its layout,
    `train/<wnid>/images/<name>.JPEG` and `train/<wnid>/<wnid>_boxes.txt`; by default found in the
    data folder. Classes that tieredImageNet lacks, and Tiny-ImageNet's own val and test, are left
    out. Decoded images stay in `root`, by default the cache folder, apart for an archive that is
    given, by its path and the sizes and times of its files. Groups are tieredImageNet's
    superclasses.
    boxes: each image has one, `dataset.beside("boxes", ...)`: float32 [x0, y0, x1, y1], the edges
        in pixels of the stored image, so that x1 - x0 is a width. False reads the images alone.

    Raises DataError where the images are not there, a class is without any, or a box is missing,
    without area or beyond its image.
    """
    check_size(NAME, size)
    name = f"{SOURCE.store}-{size}px{'' if boxes else '-without-boxes'}"
    made = partial(decode, size=size, boxes=boxes)
    store = stored(root, name, archive, lambda _: user_images(NAME, SOURCE.archives), made)
    groups = superclasses(store, "tiered_imagenet")
    return ImageDataset(NAME, store, packaged(store, NAME), groups)


def decode(
    path: Path, folder: Path, size: int, boxes: bool = True, wanted: Sequence[str] = ()
) -> ImageStore:
    """Build the store from the files under `path`; wanted: the classes, by default the official
    ones. Raises DataError where they are others."""
    classes = sorted(wanted or sum(listed(NAME).values(), []))
    with open_files(path) as files:
        found = _images(files, classes)
        beside = {}
        if boxes:
            of = _boxes(files, found)
            beside["boxes"] = np.concatenate(
                [_edges(files, names, of[wnid], size) for wnid, names in found.items()]
            )
        blocks = (
            np.stack([_pixels(files, name, size) for name in names]) for names in found.values()
        )
        return build_store(folder, NAME, list(found), blocks, beside)


def _images(files: Files, classes: Sequence[str]) -> dict[str, list[str]]:
    """The images of each class, in the order of their numbers."""
    found: dict[str, list[str]] = defaultdict(list)
    for label, names in by_class(files).items():
        parts = label.split("/")
        if parts[-1] == "images" and len(parts) > 1:
            found[parts[-2]] += names
    if missing := [wnid for wnid in classes if not found.get(wnid)]:
        raise DataError(
            f"{files.path} has no images of {len(missing)} of the {len(classes)} classes of "
            f"{NAME}, such as train/{missing[0]}/images; give {_OFFICIAL}.zip, or its train folder"
        )
    return {wnid: sorted(found[wnid], key=_number) for wnid in classes}


def _number(name: str) -> tuple[int, str]:
    """Of `n01443537_12.JPEG`: 12."""
    digits = PurePosixPath(name).stem.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else -1, name)


def _pixels(files: Files, name: str, size: int) -> np.ndarray:
    return pixels(_read(files, name), size, 3, "stretch")


def _read(files: Files, name: str) -> Image.Image:
    image = read_image(files, name)
    if image.size != (SIDE, SIDE):
        raise DataError(
            f"{name} in {files.path} is {image.size[0]}x{image.size[1]} pixels, not {SIDE}x{SIDE}; "
            f"give Tiny-ImageNet's own images, or others to dataset=folder"
        )
    return image


def _boxes(files: Files, found: Mapping[str, Sequence[str]]) -> dict[str, Boxes]:
    """The boxes of each class."""
    tables = {PurePosixPath(name).name: name for name in files.names if name.endswith("_boxes.txt")}
    boxes = {}
    for wnid in found:
        if (table := tables.get(f"{wnid}_boxes.txt")) is None:
            raise DataError(
                f"{files.path} has no boxes of class {wnid} ({wnid}_boxes.txt); put them there, or "
                "use dataset.boxes=false"
            )
        boxes[wnid] = _table(files, table)
    return boxes


def _table(files: Files, table: str) -> Boxes:
    try:
        lines = text(files, table).splitlines()
    except UnicodeError:
        raise DataError(_refused(files, table, "is no text")) from None
    boxes: Boxes = {}
    for number, line in enumerate(lines, 1):
        name, *given = line.split() or ("",)
        if not name:
            continue
        try:
            x0, y0, x1, y1 = map(int, given)
        except ValueError:
            told = f"has no box of four whole numbers in line {number} ({' '.join(line.split())})"
            raise DataError(_refused(files, table, told)) from None
        told = f"gives {name} the box {x0} {y0} {x1} {y1}"
        if x1 < x0 or y1 < y0:
            raise DataError(_refused(files, table, f"{told}, which has no area"))
        if min(x0, y0) < 0 or max(x1, y1) >= SIDE:
            told = f"{told}, beyond its image of {SIDE}x{SIDE} pixels"
            raise DataError(_refused(files, table, told))
        if boxes.setdefault(name, (x0, y0, x1, y1)) != (x0, y0, x1, y1):
            raise DataError(_refused(files, table, f"gives {name} two boxes, not one"))
    return boxes


def _refused(files: Files, table: str, reason: str) -> str:
    return f"{table} in {files.path} {reason}; mend it, or use dataset.boxes=false"


def _edges(files: Files, names: Sequence[str], boxes: Boxes, size: int) -> np.ndarray:
    """float32 [k, 4] of the images `names`, in pixels of an image of side `size`."""
    found = []
    for name in names:
        if (box := boxes.get(PurePosixPath(name).name)) is None:
            raise DataError(
                f"{name} in {files.path} has no box in its class's *_boxes.txt; add one, or use "
                "dataset.boxes=false"
            )
        found.append(box)
    return (np.array(found, np.float32) + np.array([0, 0, 1, 1], np.float32)) * (size / SIDE)
