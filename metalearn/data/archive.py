"""Untrusted archives: zip members are read into memory, tars unpacked within limits."""

import io
import lzma
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from metalearn.errors import DataError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")

# What the readers raise for damage: for numbers that fit no file, and for flags of old packers too.
_DAMAGED = (zlib.error, EOFError, ValueError, OverflowError)
_DAMAGED_ZIP = (*_DAMAGED, zipfile.BadZipFile, struct.error, NotImplementedError, OSError)
_DAMAGED_TAR = (*_DAMAGED, tarfile.TarError, lzma.LZMAError)


@dataclass(frozen=True)
class Limits:
    """The limits beyond which an archive is refused: unpacked sizes in bytes."""

    members: int = 200_000
    member_bytes: int = 64 << 20
    total_bytes: int = 4 << 30
    ratio: float = 100.0  # of the whole, unpacked over packed; images hardly shrink at all


class Archive:
    """The checked members of an open zip file."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path = path
        self._members = {_slashed(member.filename): member for member in file.infolist()}
        self.names = tuple(name for name in self._members if not name.endswith("/"))
        self._file = file

    def read(self, name: str) -> bytes:
        """The bytes of one member; raises DataError where it is damaged or longer than it says."""
        info = self._members[name]
        try:
            with self._file.open(info) as member:
                # Never unbounded: a size that lies must not unpack into all of memory.
                data = member.read(info.file_size + 1)
        except _DAMAGED_ZIP as e:
            raise DataError(_refusal(self.path, f"member {name!r} is damaged: {e}")) from None
        if len(data) != info.file_size:
            raise DataError(_refusal(self.path, f"member {name!r} is cut short"))
        return data

    def open(self, name: str) -> BinaryIO:
        """One member, read; raises DataError where it is damaged."""
        return io.BytesIO(self.read(name))


@contextmanager
def open_archive(path: Path, limits: Limits | None = None) -> Iterator[Archive]:
    """Open `path` and check every member's entry before any is read.

    Raises DataError for a damaged zip file, and for members that point outside the archive (`..`,
    absolute paths, drives), are links or devices, encrypted, not deflated, named twice, or exceed
    `limits`.
    """
    try:
        file = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise DataError(f"there is no archive {path}; put it there") from None
    except _DAMAGED_ZIP as error:
        reason = f"it is no whole zip file: {error}"
        raise DataError(_refusal(path, reason)) from None
    with file:
        problem = _problem(file, limits or Limits(), path.stat().st_size)
        if problem:
            raise DataError(_refusal(path, problem))
        yield Archive(path, file)


@contextmanager
def untarred(path: Path, place: Path, limits: Limits | None = None) -> Iterator[Path]:
    """A temporary folder under `place` with the files of a tar, removed afterwards.

    Raises DataError for a damaged tar file, and for members that point outside the archive, are
    links or devices, or exceed `limits`; then nothing is left.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=".unpacking-", dir=place)
    except OSError as error:
        raise DataError(_no_room(path, place, error)) from None
    with work as folder:
        try:
            _unpack(path, Path(folder), limits or Limits())
        except _DAMAGED_TAR as error:
            raise DataError(_refusal(path, f"it is no whole tar file: {error}")) from None
        except OSError as error:
            if error.errno is None:  # what gzip and bz2 raise for damaged data
                raise DataError(_refusal(path, f"it is no whole tar file: {error}")) from None
            raise DataError(_no_room(path, place, error)) from None
        yield Path(folder)


def _unpack(path: Path, folder: Path, limits: Limits) -> None:
    packed = path.stat().st_size
    with tarfile.open(path) as archive:
        members = total = 0
        for member in archive:
            members, total = members + 1, total + member.size
            if problem := _tar_problem(member, members, total, packed, limits):
                raise DataError(_refusal(path, problem))
            named = member.replace(name=_slashed(member.name), deep=False)
            archive.extract(named, folder, filter="data")
        while archive.fileobj and archive.fileobj.read(1 << 20):
            pass  # a checksum stands at the very end, after the tar's own


def _slashed(name: str) -> str:
    """Packers on Windows write backslashes, against the format."""
    return name.replace("\\", "/")


def _no_room(path: Path, place: Path, error: OSError) -> str:
    reason = f"cannot unpack {path} in {place} ({error.strerror or error})"
    return f"{reason}; set METALEARN_CACHE to another place"


def _tar_problem(
    member: tarfile.TarInfo, members: int, total: int, packed: int, limits: Limits
) -> str | None:
    parts = re.split(r"[/\\]", member.name)
    if ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", member.name):
        return f"member {member.name!r} points outside the archive"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return f"member {member.name!r} is a link or a device, not a file"
    if member.size > limits.member_bytes:
        return f"member {member.name!r} would unpack to {member.size} bytes"
    if members > limits.members:
        return f"it has more than {limits.members} members"
    if total > limits.total_bytes:
        return f"it would unpack to more than {limits.total_bytes} bytes"
    if total > limits.ratio * packed:
        return f"it would unpack to more than {limits.ratio:g} times its size"
    return None


def _problem(file: zipfile.ZipFile, limits: Limits, packed: int) -> str | None:
    members = file.infolist()
    if len(members) > limits.members:
        return f"it has {len(members)} members, more than {limits.members}"
    if len({_slashed(member.filename) for member in members}) != len(members):
        return "it names a member twice"
    total = sum(member.file_size for member in members)
    if total > limits.total_bytes:
        return f"it would unpack to {total} bytes, more than {limits.total_bytes}"
    # Against the file itself: overlapping members can each claim the same packed bytes.
    if total > limits.ratio * packed:
        return f"it would unpack to {total / packed:.0f} times its size, more than {limits.ratio:g}"
    return next(filter(None, (_member_problem(member, limits) for member in members)), None)


def _member_problem(member: zipfile.ZipInfo, limits: Limits) -> str | None:
    name = member.orig_filename  # as stored: zipfile cuts `filename` at a zero byte
    parts = re.split(r"[/\\]", name)
    if ".." in parts or parts[0] == "" or "\0" in name or re.match(r"[A-Za-z]:", name):
        return f"member {name!r} points outside the archive"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"member {name!r} is a link or a device, not a file"
    if member.flag_bits & 0x1:
        return f"member {name!r} is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"member {name!r} is neither stored nor deflated"
    if member.file_size > limits.member_bytes:
        return f"member {name!r} would unpack to {member.file_size} bytes"
    return None


def _refusal(path: Path, reason: str) -> str:
    return f"archive {path} is refused ({' '.join(reason.split())}); put a good copy in its place"
