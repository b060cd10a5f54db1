"""Omniglot (Lake et al. 2015): 1623 characters of 50 alphabets, 20 drawings each."""

import io
import re
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from metalearn.data.archive import Archive, open_archive
from metalearn.data.class_splits import packaged, shuffled
from metalearn.data.dataset import SPLITS, ImageDataset, with_rotations, without_rotations
from metalearn.data.paths import Source, official, store_folder
from metalearn.data.store import ImageStore, build_store, open_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel
SIDE, DRAWINGS = 105, 20
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
# The sums of the official archives, as in torchvision.datasets.Omniglot.
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
MIRRORS = (
    "https://github.com/brendenlake/omniglot/raw/master/python/{}.zip",
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{}.zip",
)
# Of the two archives, the one that is fetched last.
SOURCE = Source("download", f"omniglot-v{VERSION}", ("omniglot/images_evaluation.zip",))
MEMBER = re.compile(r"(images_\w+)/([^/]+/character\d\d)/\d{4}_\d\d\.png")


def omniglot(
    root: Path | None = None,
    archive: Path | None = None,
    size: int = 28,
    split: Literal["vinyals", "random"] = "vinyals",
    seed: int = 0,
    rotations: bool = True,
) -> ImageDataset:
    """Omniglot at [1, size, size], ink = 255.

    split "vinyals": 1028/172/423 characters, the lists that Snell et al. 2017 took from Vinyals
    et al. 2016. "random": `seed` shuffles the characters into 1100/100/423 (Finn et al. 2017:
    1200 for training, of which 100 validate). `rotations` makes four classes of each character.
    Groups are the alphabets.

    archive: a folder with `images_background.zip` and `images_evaluation.zip`. By default they are
    taken from `omniglot/` of the data folder, else from `root` (the cache folder), else downloaded
    to `root`; what is decoded stays there. Raises DataError where they cannot be had or do not
    hold Omniglot.
    """
    if split not in ("vinyals", "random"):
        raise DataError(f"omniglot: split must be vinyals or random, not {split!r}")
    if not 1 <= size <= SIDE:
        raise DataError(f"omniglot: size must be 1 to {SIDE}, not {size}")
    folder = store_folder(root, f"{SOURCE.store}-{size}px", archive)
    if folder.exists():
        store = open_store(folder)
    else:
        given = Path(archive).expanduser() if archive else None
        store = decode(
            [
                given / f"{name}.zip" if given else find_archive(name, folder.parent)
                for name in CHARACTERS
            ],
            folder,
            size,
        )
    as_classes = with_rotations if rotations else without_rotations
    if split == "vinyals":
        splits = packaged(store, "omniglot_vinyals", as_classes)
    else:
        parts = np.split(shuffled(len(store.classes), seed), [1100, 1200])
        splits = {name: as_classes(index) for name, index in zip(SPLITS, parts, strict=True)}
    return ImageDataset("omniglot", store, splits, [n.split("/")[0] for n in store.classes])


def find_archive(name: str, root: Path) -> Path:
    """The path of `<name>.zip`: the user's own, else the one downloaded to `root` before or now."""
    urls = [mirror.format(name) for mirror in MIRRORS]
    return official([f"omniglot/{name}.zip"], root, urls, MD5[name])


def decode(
    archives: list[Path], folder: Path, size: int, expected: dict[str, int] | None = None
) -> ImageStore:
    """Build the store from the archives, which must hold `expected` characters, 20 drawings each.

    Raises DataError for hostile or damaged archives, for missing or surplus drawings, and for
    images that are not 105x105 PNGs.
    """
    with ExitStack() as stack:
        found: dict[str, list[tuple[Archive, str]]] = {}
        for path in archives:
            archive = stack.enter_context(open_archive(path))
            found |= _characters(archive, expected or CHARACTERS)
        names = sorted(found)
        blocks = (
            np.stack([_image(*member, size) for member in found[name]])[..., None] for name in names
        )
        return build_store(folder, "omniglot", names, blocks)


def _characters(archive: Archive, expected: dict[str, int]) -> dict[str, list[tuple[Archive, str]]]:
    name = archive.path.stem
    found: dict[str, list[tuple[Archive, str]]] = defaultdict(list)
    for member in sorted(archive.names):
        match = MEMBER.fullmatch(member)
        if match and match[1] == name:
            found[match[2]].append((archive, member))
    if len(found) != expected[name]:
        raise DataError(
            f"archive {archive.path} holds {len(found)} characters under {name}/, "
            f"not {expected[name]}; put Omniglot's {name}.zip in its place"
        )
    for character, members in found.items():
        if len(members) != DRAWINGS:
            raise DataError(
                f"archive {archive.path} holds {len(members)} drawings of {character}, "
                f"not {DRAWINGS}; put Omniglot's {name}.zip in its place"
            )
    return found


def _image(archive: Archive, member: str, size: int) -> np.ndarray:
    """One drawing: uint8 [size, size], ink = 255."""
    try:
        with Image.open(io.BytesIO(archive.read(member)), formats=["PNG"]) as image:
            # Before the pixels are touched: a small PNG can claim a vast image.
            if image.size != (SIDE, SIDE):
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels")
            ink = image.convert("L").point(lambda v: 255 - v)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow would name the bytes in memory, not the file.
        reason = "another format" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(
            f"member {member} of {archive.path} is no {SIDE}x{SIDE} PNG ({reason}); "
            "put a good copy of the archive in its place"
        ) from None
    # Lanczos as in MAML's data transform (cbfinn/maml, data/omniglot_resized).
    return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))
