"""Where the decoded images of a data set are kept, and of which files they are."""

import hashlib
from pathlib import Path

from metalearn.data.image_files import Folder, cannot_read
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder


def kept(root: Path | None, name: str, archive: Path | None = None) -> Path:
    """The folder of the store `name` in `root`, by default in the cache folder.

    archive: the folder or file that the user names, if any. Its path and the sizes and times of
    its files stand as a digest in the name of the store's folder: a store serves only the very
    files that it was decoded from. Raises DataError where the archive is not there.
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
        add_file(total, path / inside)
    return place / f"{name}-{total.hexdigest()[:16]}"


def add_file(total: "hashlib._Hash", file: Path) -> None:
    """Add the size and time of `file` to a digest. Raises DataError where it cannot be read."""
    try:
        facts = file.stat()
    except OSError as error:
        raise DataError(cannot_read(file, error)) from None
    total.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
