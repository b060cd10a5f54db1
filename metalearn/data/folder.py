"""Any folder or archive of class folders as a data set."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from metalearn.data import lists, pickles
from metalearn.data.class_splits import by_fractions
from metalearn.data.dataset import SPLITS, Classes, ImageDataset, without_rotations
from metalearn.data.files import TAKEN, Files, Folder, open_files
from metalearn.data.image_files import Fit, images_in, pixels, read_pixels, shared_folders, survey
from metalearn.data.layout import (
    ClassFolder,
    Layout,
    by_folders,
    left_out,
    merged,
    split_place,
    without_small,
)
from metalearn.data.paths import check_size, hash_file
from metalearn.data.store import ImageStore, build_store, open_store
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder

VERSION = 2  # raise it whenever a change below changes a pixel
log = logging.getLogger(__name__)


class Look(NamedTuple):
    """How images become pixels."""

    size: int
    channels: int | None
    fit: Fit
    invert: bool


def folder(
    root: str | Path | None = None,
    size: int = 84,
    channels: int | None = None,
    fit: Fit = "crop",
    invert: bool = False,
    splits: str | Path | None = None,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    min_images: int = 1,
    class_folder: ClassFolder | None = None,
    cache: Path | None = None,
) -> ImageDataset:
    """The images under `root`, a folder, zip or tar: a class for each folder that holds some,
    named by its path, at [channels, size, size].

    channels: 1 or 3; None takes 1 where every image is grey.
    fit: "crop" keeps the middle square, "stretch" all of it. invert: 255 - pixel, for dark ink.
    splits: a folder with lists for train, val and test: `.txt` with a class name a line, `.csv`
        with images and labels (LibFewShot), or `.json` with class_roots (easyfsl); classes that
        stand in none are left out. Without it, such lists in `root` itself; else folders that are
        named as splits, as train, val and test, or base, val and novel; else `seed` shuffles the
        classes and `fractions` cuts them, a fraction of 0 leaving its split without classes.
    min_images: classes that have fewer are left out.
    class_folder: which of the folders that an image lies in is its class: "path", each one,
        "first", the outermost (`cat/monday`), or "last", the innermost (`drawings/cat`), below the
        folders of splits. None: each one too, but those of one outer folder stay in one split, and
        what could be read otherwise is refused.
    cache: where the decoded images are kept, by default the cache folder. An image that is
        added, removed or changed under `root` is noticed.

    Where `root` holds no images but three pickles, as of MetaOptNet's or mini-ImageNet's, their
    arrays are read; nothing in them is run. What is left out is logged, and in `notes`.

    Raises DataError where there are no images, or one that cannot be read, and for splits that
    share a class or name one that is not there.
    """
    if root is None:
        raise DataError("dataset.root is missing; use dataset.root=<folder or zip of folders>")
    check_size("folder", size)
    if channels not in (None, 1, 3) or fit not in ("crop", "stretch"):
        raise DataError(f"folder: channels={channels} must be 1 or 3, fit={fit} crop or stretch")
    path, look = Path(root).expanduser(), Look(size, channels, fit, invert)
    place = cache or cache_folder()
    with open_files(path) as files:
        found, others = images_in(files)
        if not found and (packed := pickles.find(files.names)):
            store, layout = _from_pickles(path, files, packed, look, place, min_images)
            class_splits = _splits(_name(path), layout, fractions, seed)
        else:
            layout = _layout(path, files, found, others, splits, class_folder)
            without_small(layout, min_images)
            class_splits = _splits(_name(path), layout, fractions, seed)
            store = _from_images(path, files, layout, look, place)
    for note in layout.notes:
        log.warning("%s: %s", path.name, note)
    outer = layout.groups
    groups = None if outer is None else [outer[label] for label in store.classes]
    return ImageDataset(_name(path), store, class_splits, groups, tuple(layout.notes))


def _layout(
    path: Path, files: Files, found: Mapping[str, Sequence[str]],
    others: Mapping[str, Sequence[str]], splits: str | Path | None,
    class_folder: ClassFolder | None,
) -> Layout:  # fmt: skip
    if not found:
        beside = ", ".join(f"{len(names)} {ending}" for ending, names in sorted(others.items()))
        raise DataError(
            f"there are no images in {path}{f', but {beside}' if beside else ''}; give {TAKEN} "
            "with a folder for each class, or with the three pickles of MetaOptNet or mini-ImageNet"
        )
    notes = []
    # The prefix that all share says nothing: a zip of one folder is that folder.
    prefix = shared_folders(list(found))
    labels = {label[len(prefix) :]: names for label, names in found.items()}
    where, told = files, None
    if splits is not None:
        where = Folder(Path(splits).expanduser())
        told = lists.find(where.names) or {split: f"{split}.txt" for split in SPLITS}
    elif split_place(_name(path), list(labels), class_folder) is None:
        told = lists.find(files.names)
        if told and told["train"].endswith(".txt") and not lists.name_classes(files, told, labels):
            names = ", ".join(told.values())
            notes.append(f"{names} are no lists of its classes and say nothing of the splits")
            told = None
    by_rows = told is not None and told["train"].endswith(".csv")
    if "." in labels and not by_rows:
        raise DataError(
            f"{labels['.'][0]} lies in {path} itself; put every image into the folder of its class"
        )
    if told is None:
        layout = by_folders(_name(path), labels, class_folder)
    else:
        labels = labels if by_rows else merged(labels, class_folder)
        layout = lists.by_lists(_name(path), labels, where, told)
        others = {e: [n for n in own if n not in told.values()] for e, own in others.items()}
    closed = files.closed if isinstance(files, Folder) else []
    layout.notes += [*notes, *left_out(others, closed)]
    return layout


def _splits(
    name: str, layout: Layout, fractions: Sequence[float], seed: int
) -> Mapping[str, Classes]:
    if not layout.classes:
        raise DataError(f"{name} has no class left; use a smaller dataset.min_images")
    if layout.owners is None:
        units = [layout.units[label] for label in layout.classes]
        return by_fractions(name, units, fractions, seed)
    number = {label: i for i, label in enumerate(layout.classes)}
    index: dict[str, list[int]] = {split: [] for split in SPLITS}
    for label, split in layout.owners.items():
        if label in number:
            index[split].append(number[label])
    return {split: without_rotations(np.array(own, np.int64)) for split, own in index.items()}


def _from_images(path: Path, files: Files, layout: Layout, look: Look, place: Path) -> ImageStore:
    kept = place / f"folder-{_safe(_name(path))}-{_digest(path, files, layout, look)[:16]}"
    if kept.exists():
        return open_store(kept)
    seen = survey(files, (name for names in layout.classes.values() for name in names))
    if seen.deep:
        layout.notes.append(
            f"{seen.deep} images have more than 8 bits, of which {seen.white:g} is taken for white"
        )
    if seen.moving:
        layout.notes.append(f"{seen.moving} images have several frames; the first is taken")
    how = look.size, look.channels or (1 if seen.grey else 3), look.fit, look.invert, seen.white
    blocks = (
        np.stack([read_pixels(files, name, *how) for name in names])
        for names in layout.classes.values()
    )
    return build_store(kept, _name(path), list(layout.classes), blocks)


def _digest(path: Path, files: Files, layout: Layout, look: Look) -> str:
    """Of what decides the store's content: names, sizes and times of the files, the settings.

    Raises DataError where one file, by links, is in classes of two splits.
    """
    total = hashlib.sha256(f"{VERSION} {' '.join(map(str, look))}\n".encode())
    if path.is_file():
        hash_file(total, path)
    side = layout.units if layout.owners is None else layout.owners
    first: dict[tuple[int, int], tuple[str, str]] = {}
    for label, names in layout.classes.items():
        total.update(f"{label}:\n".encode(errors="surrogateescape"))
        for name in names:
            total.update(f"{name}\n".encode(errors="surrogateescape"))
            if not path.is_dir():
                continue
            facts = hash_file(total, path / name)
            linked = isinstance(files, Folder) and files.linked
            if label in side and facts.st_ino and (linked or facts.st_nlink > 1):
                before, other = first.setdefault((facts.st_dev, facts.st_ino), (name, label))
                if side[other] != side[label]:
                    raise DataError(
                        f"{before} and {name} in {path} are one file by a link, of classes "
                        f"{other} and {label}, which may be in two splits; keep it in one"
                    )
    return total.hexdigest()


def _from_pickles(
    path: Path, files: Files, packed: Mapping[str, str], look: Look, place: Path, min_images: int
) -> tuple[ImageStore, Layout]:
    total = hashlib.sha256(f"{VERSION} {look} {min_images} {sorted(packed.items())}\n".encode())
    for name in [""] if path.is_file() else sorted(packed.values()):
        hash_file(total, path / name)
    kept = place / f"folder-{_safe(_name(path))}-{total.hexdigest()[:16]}"
    if kept.exists():
        store = open_store(kept)
        layout = Layout({label: [] for label in store.classes})
    else:
        images = pickles.images(files, packed)
        # Every image is a name to who counts them.
        layout = Layout({label: [label] * len(own) for label, own in images.items()})
        without_small(layout, min_images)
        depth = look.channels or max(own.shape[-1] for own in images.values())
        how = look.size, depth, look.fit, look.invert

        def made(image: np.ndarray) -> np.ndarray:
            whole = image[..., 0] if image.shape[-1] == 1 else image
            return pixels(Image.fromarray(whole), *how)

        blocks = (np.stack([made(image) for image in images[label]]) for label in layout.classes)
        if not layout.classes:
            raise DataError(f"no class of {path} has min_images={min_images} images; use fewer")
        store = build_store(kept, _name(path), list(layout.classes), blocks)
    layout.owners = {label: label.partition("/")[0] for label in store.classes}
    return store, layout


def _name(path: Path) -> str:
    return path.stem or path.resolve().stem or "images"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40] or "images"
