"""Where data is looked for, and where decoded images are kept."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from metalearn.data.download import download
from metalearn.data.files import Folder, cannot_read
from metalearn.data.store import ImageStore, open_store
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder


class Source(NamedTuple):
    """Where a data set comes from.

    origin: what is shown where neither store nor archive is on this machine. store: prefix of the
    names of its stores. archives: files that it can be decoded from, any one of them, in the data
    folder or in the cache.
    """

    origin: Literal["download", "yours", "made"]
    store: str = ""
    archives: Sequence[str] = ()


LARGEST = 4096
"""Pixels of the side of an image, at most: one in colour takes 48 MiB."""


def check_size(name: str, size: int) -> None:
    """Raise DataError for images that have no pixel, or are too large."""
    if size < 1:
        raise DataError(f"{name}: size must be 1 or more, not size={size}")
    if size > LARGEST:
        raise DataError(f"{name}: size={size} must be {LARGEST} or less")


def data_folder() -> Path | None:
    """The folder with data that the user already has, or None.

    The environment variable `METALEARN_DATA`; where it is not set, `../shared/data` relative to
    the current directory or to the repository. Raises DataError where the variable names no
    folder: a silent fallback would hide a misspelling.
    """
    named = os.environ.get("METALEARN_DATA")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise DataError(f"METALEARN_DATA names {folder}, which is no folder; correct it")
        return folder
    repository = Path(__file__).resolve().parents[2]
    for start in (Path.cwd(), repository):
        folder = start.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    return None


def image_folder_names(name: str) -> tuple[str, ...]:
    """The names under which a set of images is looked for in the data folder."""
    return (name, f"{name}.zip", f"{name}.tar.gz", f"{name}.tar")


def user_images(name: str, candidates: Sequence[str] = ()) -> Path:
    """The path of the user's copy in the data folder: the first of `candidates`, by default of
    `image_folder_names`. Raises DataError where there is none."""
    data = data_folder()
    for candidate in candidates or image_folder_names(name):
        if data is not None and (data / candidate).exists():
            return data / candidate
    raise DataError(
        f"{name} cannot be downloaded freely; give its images with dataset.archive=<folder or "
        f"zip>, or put them at {name}/ in a folder named by METALEARN_DATA"
    )


def store_folder(root: Path | None, name: str, archive: Path | None = None) -> Path:
    """The folder of the image store `name` in `root`, by default in the cache folder.

    archive: the folder or file that the user names, if any. A digest of its path and of the sizes
    and times of its files is part of the store's name, so that a store serves only the files that
    it was decoded from. Raises DataError where the archive does not exist.
    """
    place = Path(root) if root else cache_folder()
    if archive is None:
        return place / name
    path = Path(archive).expanduser().resolve()
    if not path.exists():
        raise DataError(f"there is no folder or archive {archive}; correct dataset.archive")
    total = hashlib.sha256(f"{path}\n".encode(errors="surrogateescape"))
    for inside in Folder(path).names if path.is_dir() else [""]:
        total.update(f"{inside}\n".encode(errors="surrogateescape"))
        hash_file(total, path / inside)
    return place / f"{name}-{total.hexdigest()[:16]}"


def stored(
    root: Path | None,
    name: str,
    archive: Path | None,
    find: Callable[[Path], Path],
    decode: Callable[[Path, Path], ImageStore],
) -> ImageStore:
    """The store `name`, opened; or decoded first, from `archive` or else from what `find` gives.

    find: from the folder of the stores to an archive, there or of the user's. decode: from an
    archive and the folder of a store. Raises as `store_folder` does.
    """
    folder = store_folder(root, name, archive)
    if folder.exists():
        return open_store(folder)
    return decode(Path(archive).expanduser() if archive else find(folder.parent), folder)


def official(archives: Sequence[str], root: Path, urls: Sequence[str], md5: str) -> Path:
    """The first of `archives` that lies in the user's data folder; else the last of them, below
    `root`, downloaded before or now. Raises DataError where it cannot be had."""
    data = data_folder()
    for name in archives:
        if data is not None and (data / name).is_file():
            return data / name
    target = root / archives[-1]
    if not target.is_file():
        place = f"put it by hand at {archives[-1]} in a folder named by METALEARN_DATA"
        download(urls, target, md5=md5, by_hand=place)
    return target


def hash_file(total: "hashlib._Hash", file: Path) -> os.stat_result:
    """Add the size and time of `file` to a digest; its facts. Raises DataError where it cannot be
    read."""
    try:
        facts = file.stat()
    except OSError as error:
        raise DataError(cannot_read(file, error)) from None
    total.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
    return facts
