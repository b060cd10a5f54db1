"""Atomic files, locks, the cache folder, files of installed packages, and floats that JSON has no
number for."""

import errno
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def cache_folder() -> Path:
    """The folder of stores, downloads and plans: `METALEARN_CACHE`, else the user's cache."""
    named = os.environ.get("METALEARN_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("metalearn"))


def packaged(name: str, *patterns: str) -> list[Path]:
    """The files of the installed package `name` that fit one of `patterns`; it is not imported."""
    if not name.isidentifier():
        return []
    spec = importlib.util.find_spec(name)
    places = (spec.submodule_search_locations if spec else None) or ()
    return sorted(p for place in places for what in patterns for p in Path(place).rglob(what))


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is created here and removed after; other processes wait.

    The lock ends with its process. Where the file system has no locks nobody waits.
    """
    # Never a file that stands for a lock (fallback_to_soft): a killed process would leave it held.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits looks for the file anew
        lock.release()


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Write `content` (text in UTF-8) to `path` atomically: readers see the old file or the new.

    A pipe or a device, such as /dev/stdout, is written to and not replaced.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def encode_floats(value: Any) -> Any:
    """Copy nested dicts and lists with NaN and the infinities as "nan", "inf" and "-inf"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {key: encode_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_floats(item) for item in value]
    return value


def decode_floats(value: Any) -> Any:
    """Undo `encode_floats`."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decode_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_floats(item) for item in value]
    return value
