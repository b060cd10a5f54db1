"""Files under relative names, in a folder or an archive."""

import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from metalearn.data.archive import TARS, Limits, open_archive, untarred
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder

TAKEN = f"a folder, a .zip or a tar ({', '.join(TARS)})"
PICKLES = (".pkl", ".pickle")
_TABLES = (".npz", ".npy", ".h5", ".hdf5", ".mat", ".lmdb", ".tfrecord", ".parquet", ".pt", ".pth")
_PACKED = (".rar", ".7z", ".zst", ".gz", ".bz2", ".xz", ".lzma", ".lz4", ".zipx", ".cab", ".iso")


class Files(Protocol):
    """Files under relative names with forward slashes."""

    path: Path

    @property
    def names(self) -> Sequence[str]:
        """The names of all files."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises DataError where it cannot be read."""
        ...

    def open(self, name: str) -> BinaryIO:
        """One file, to be read in parts; raises DataError where it cannot be opened."""
        ...


class Folder:
    """The files under a folder, hidden folders left out; links are followed.

    told: the path in messages, where it is another. linked: whether a link is among them. closed:
    folders that cannot be read, with the reason.
    """

    def __init__(self, path: Path, told: Path | None = None) -> None:
        self.path, self._place = told or path, path
        self.linked = False
        self.closed: list[str] = []
        self.names = sorted(self._found(path, "", frozenset()))

    def _found(self, folder: Path, inside: str, above: frozenset[str]) -> Iterator[str]:
        here = os.path.realpath(folder)
        if here in above:  # a link back up
            return
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            self.closed.append(f"{folder} ({error.strerror})")
            return
        for entry in entries:
            self.linked = self.linked or entry.is_symlink()
            if not _is_folder(entry):
                yield inside + entry.name
            elif not entry.name.startswith("."):
                below = f"{inside}{entry.name}/"
                yield from self._found(folder / entry.name, below, above | {here})

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises DataError where it cannot be read."""
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise DataError(cannot_read(self.path / name, error)) from None

    def open(self, name: str) -> BinaryIO:
        """One file, to be read in parts; raises DataError where it cannot be opened."""
        try:
            return (self._place / name).open("rb")
        except OSError as error:
            raise DataError(cannot_read(self.path / name, error)) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def cannot_read(path: Path, error: OSError) -> str:
    """The message where a file of the user cannot be read."""
    return f"cannot read {path} ({error.strerror or error}); mend or remove it"


@contextmanager
def open_files(path: Path, limits: Limits | None = None) -> Iterator[Files]:
    """The files of the folder, zip or tar archive at `path`. Raises DataError where it is none.

    A tar is unpacked to a temporary folder of the cache, since it can only be read from its
    start.
    """
    if path.is_dir():
        yield Folder(path)
    elif not path.is_file():
        raise DataError(f"there is no folder or archive {path}; correct its path, dataset.root=...")
    elif _is_zip(path):
        with open_archive(path, limits) as archive:
            yield archive
    elif _is_tar(path):
        with untarred(path, cache_folder(), limits) as folder:
            yield Folder(folder, path)
    else:
        raise DataError(f"{path} is no archive that is read: give {TAKEN}; {_instead(path)}")


def _is_zip(path: Path) -> bool:
    ending = path.suffix.lower()
    return ending == ".zip" or (ending not in _TABLES and zipfile.is_zipfile(path))


def _is_tar(path: Path) -> bool:
    if path.name.lower().endswith(TARS):
        return True
    try:
        return tarfile.is_tarfile(path)
    except Exception:  # whatever is made of another kind of file
        return False


def _instead(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in PICKLES:
        return "of pickles, the folder that holds those of train, val and test"
    if ending in _TABLES:
        return (
            "write its arrays as images into a folder for each class, or make a "
            "metalearn.data.TensorDataset of them"
        )
    if ending in _PACKED:
        return "unpack it, and give the folder"
    return "this is none of them"


def beginning(files: Files, name: str, count: int = 32) -> bytes:
    """The first bytes of a file."""
    with files.open(name) as file:
        return file.read(count)


def text(files: Files, name: str) -> str:
    """A text file in UTF-8 or, with a byte order mark, UTF-16. Raises UnicodeError."""
    data = files.read(name)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if wide else "utf-8-sig")
