"""Decoded images in one memory-mapped array, sorted by class."""

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from metalearn.errors import DataError
from metalearn.runtime.files import one_at_a_time

FORMAT = 1
STALE_SECONDS = 3600.0
_BUILDING = ".{}.building-"


@dataclass(frozen=True, eq=False)
class ImageStore:
    """Images of many classes; the examples of class c are rows offsets[c]:offsets[c+1].

    images: uint8 [n, H, W, C], read-only, ink or brightness = 255. offsets: int64 [classes+1].
    digest: sha256 of the image bytes, the shape, the class names and the offsets, not the name.
    beside: what else is known of every image, `[n, ...]` by name; its bytes join the digest.
    """

    name: str
    images: np.ndarray
    classes: tuple[str, ...]
    offsets: np.ndarray
    digest: str
    beside: Mapping[str, np.ndarray] = field(default_factory=dict)


def open_store(folder: Path) -> ImageStore:
    """Map the store in `folder`. Sizes are checked, bytes are not: see `verify`.

    Raises DataError where there is no store, or one that is damaged or of another version.
    """
    if not folder.exists():
        raise DataError(f"there is no image store at {folder}; build it first")
    try:
        with warnings.catch_warnings(action="ignore"):  # of a damaged header, beside the error
            return _map(folder)
    except Exception as error:  # whatever numpy and json make of spoilt files
        raise DataError(_damaged(folder, error)) from None


def verify(folder: Path) -> None:
    """Read every byte of the store and compare with its digest; raises DataError if they differ."""
    store = open_store(folder)
    digest = hashlib.sha256()
    rows = max(1, (1 << 24) // max(1, int(np.prod(store.images.shape[1:]))))
    for start in range(0, len(store.images), rows):
        digest.update(np.ascontiguousarray(store.images[start : start + rows]).data)
    for array in store.beside.values():
        digest.update(np.ascontiguousarray(array).data)
    if _finish(digest, store.images.shape, store.classes, store.offsets) != store.digest:
        raise DataError(_damaged(folder, "its digest does not match its content"))


def build_store(
    folder: Path,
    name: str,
    classes: Sequence[str],
    images: Iterable[np.ndarray],
    beside: Mapping[str, np.ndarray] | None = None,
) -> ImageStore:
    """Write a store whole or not at all, and open it.

    `images` yields one uint8 array [k, H, W, C] for each of `classes`, in order, k >= 1; `beside`
    has an array `[n, ...]` for all of them together, by name, read when they are there. All is
    written to a temporary folder beside `folder` and renamed into place at the end. Of two
    processes one waits, and uses the other's store. Whatever `images` raises is
    passed on and leaves nothing behind; a killed build leaves a hidden folder that is never
    read, and that a later build removes once it is an hour old.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder.parent / f".{folder.name}.lock"):
            _sweep(folder)
            if folder.exists():
                return open_store(folder)
            return _build(folder, lambda work: _write(work, name, classes, images, beside or {}))
    except OSError as error:
        raise DataError(_unwritable(folder, error)) from None


def _build(folder: Path, write: Callable[[Path], None]) -> ImageStore:
    work = Path(tempfile.mkdtemp(prefix=_BUILDING.format(folder.name), dir=folder.parent))
    try:
        write(work)
        try:
            os.rename(work, folder)
        except OSError:
            # A folder that is there and not empty cannot be replaced: somebody else won.
            if not folder.is_dir():
                raise
        return open_store(folder)
    except OSError as error:
        raise DataError(_unwritable(folder, error)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(
    work: Path,
    name: str,
    classes: Sequence[str],
    images: Iterable[np.ndarray],
    beside: Mapping[str, np.ndarray],
) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise DataError(f"the classes of store {name} must be one or more, each named once")
    digest = hashlib.sha256()
    offsets = [0]
    shape: tuple[int, ...] | None = None
    with open(work / "images.npy", "wb") as file:
        for label, block in zip(classes, images, strict=True):
            shape = shape or block.shape[1:]
            fits = block.dtype == np.uint8 and block.ndim == 4 and block.shape[1:] == shape
            if not fits or not len(block):
                raise DataError(
                    f"class {label} of store {name} holds {block.dtype} {block.shape}, "
                    f"not uint8 [1 or more, {', '.join(map(str, shape))}]"
                )
            if len(offsets) == 1:
                _header(file, (0, *shape))
            data = np.ascontiguousarray(block)
            file.write(data.data)
            digest.update(data.data)
            offsets.append(offsets[-1] + len(block))
        assert shape is not None
        whole = (offsets[-1], *shape)
        # numpy leaves room in the header for the first axis to grow, so this fits in place.
        file.seek(0)
        _header(file, whole)
        file.flush()
        os.fsync(file.fileno())
    for of, array in beside.items():
        if len(array) != offsets[-1]:
            raise DataError(f"store {name} has {offsets[-1]} images, but {len(array)} {of}")
        np.save(work / f"{of}.npy", array)
        digest.update(np.ascontiguousarray(array).data)
    content = {"classes": list(classes), "offsets": offsets, "beside": list(beside)}
    content["digest"] = _finish(digest, whole, classes, np.array(offsets))
    record = {"format": FORMAT, "name": name, "shape": whole, **content}
    with open(work / "store.json", "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    # mkdtemp makes a folder for its owner alone; a shared cache follows the user's umask.
    mask = os.umask(0)
    os.umask(mask)
    work.chmod(0o777 & ~mask)


def _header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _map(folder: Path) -> ImageStore:
    record: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise ValueError(f"its format is {record['format']}, not {FORMAT}")
    images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
    offsets = np.asarray(record["offsets"], dtype=np.int64)
    classes = tuple(record["classes"])
    shape = tuple(record["shape"])
    if images.dtype != np.uint8 or images.shape != shape or len(shape) != 4:
        raise ValueError(f"images.npy holds {images.dtype} {images.shape}, not uint8 {shape}")
    # A file longer than its header says maps without complaint.
    if os.path.getsize(folder / "images.npy") != images.offset + images.nbytes:
        raise ValueError("images.npy has another size than its header says")
    if offsets.shape != (len(classes) + 1,) or offsets[0] != 0 or offsets[-1] != len(images):
        raise ValueError("its class offsets do not fit its images")
    if (np.diff(offsets) < 1).any():
        raise ValueError("it has a class without images")
    beside = {of: np.load(folder / f"{of}.npy", "r") for of in record.get("beside", ())}
    if any(len(array) != len(images) for array in beside.values()):
        raise ValueError("what lies beside its images is not of them all")
    return ImageStore(str(record["name"]), images, classes, offsets, str(record["digest"]), beside)


def _finish(digest: Any, shape: Sequence[int], classes: Sequence[str], offsets: np.ndarray) -> str:
    facts = [[int(n) for n in shape], list(classes), [int(n) for n in offsets]]
    digest.update(json.dumps(facts, separators=(",", ":")).encode())
    return digest.hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed builds of this store left; a live build writes more often than hourly."""
    for left in folder.parent.glob(_BUILDING.format(folder.name) + "*"):
        try:
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
        except OSError:
            continue
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _damaged(folder: Path, why: object) -> str:
    reason = " ".join(str(why).split())
    return f"the image store at {folder} is damaged ({reason}); delete that folder to rebuild it"


def _unwritable(folder: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"cannot write the image store {folder} ({reason}); set METALEARN_CACHE to another place"
