"""Image files of many formats, in a folder or an archive, to uint8 arrays of one size."""

import io
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metalearn.data.archive import TARS, Limits, open_archive, untarred
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".pgm": "PPM",
    ".ppm": "PPM",
}
PIXELS = 100_000_000  # an image that claims more is not decoded
GREY = ("1", "L", "LA", "I", "I;16", "F")

Fit = Literal["crop", "stretch"]
"""How an image is resized: its middle square, or the whole of it stretched to a square."""


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


class Folder:
    """The files under a folder, hidden folders left out; links are followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found, seen = [], set()
        for base, folders, files in os.walk(path, followlinks=True):
            here = os.path.realpath(base)
            if here in seen:  # a link back up
                folders.clear()
                continue
            seen.add(here)
            folders[:] = [f for f in folders if not f.startswith(".")]
            inside = Path(base).relative_to(path)
            found += [(inside / file).as_posix() for file in files]
        self.names = sorted(found)

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises DataError where it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(cannot_read(self.path / name, error)) from None


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
    elif path.is_file() and path.name.lower().endswith(TARS):
        with untarred(path, cache_folder(), limits) as folder:
            yield Folder(folder)
    elif path.is_file():
        with open_archive(path, limits) as archive:
            yield archive
    else:
        raise DataError(f"there is no folder or archive {path}; correct its path")


def by_class(files: Files) -> dict[str, list[str]]:
    """The images by their folder, both sorted; other and hidden files left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in files.names:
        path = PurePosixPath(name)
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
        if path.suffix.lower() in FORMATS and not hidden:
            found[str(path.parent)].append(name)
    return {label: sorted(found[label]) for label in sorted(found)}


def shared_folders(labels: Sequence[str]) -> str:
    """The leading folders that all labels have in common, the last of each label left out."""
    first = labels[0].split("/")[:-1] if labels else []
    while first and not all(label.startswith("/".join(first) + "/") for label in labels):
        first.pop()
    return "/".join(first) + "/" if first else ""


def read_image(files: Files, name: str) -> Image.Image:
    """The image `name`, upright. Raises DataError where it cannot be read."""
    data = files.read(name)
    kind = FORMATS[PurePosixPath(name).suffix.lower()]
    try:
        # A wrong ending is common and harmless: whatever of these it is.
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=[kind, *set(FORMATS.values())])
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels")
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        # Pillow would name the bytes in memory, not the file.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format, or damaged" if unknown else " ".join(str(error).split())
        raise DataError(
            f"{name} in {files.path} is no image that can be read ({reason}); mend or remove it"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Pillow warns of and logs: an image can be read, or one line says why not."""
    logger = logging.getLogger("PIL.TiffImagePlugin")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.disabled = before


def is_grey(image: Image.Image) -> bool:
    """Whether the image has one channel (beside transparency)."""
    return image.mode in GREY


def pixels(
    image: Image.Image, size: int, channels: int, fit: Fit = "crop", invert: bool = False
) -> np.ndarray:
    """uint8 [size, size, channels]; what is transparent becomes white."""
    if image.mode in ("I", "I;16", "F"):  # 16 bits, of which the upper 8 are kept
        with np.errstate(invalid="ignore"):  # a float may be NaN, which becomes black
            upper = np.nan_to_num(np.asarray(image) / 256)
        image = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        if fit == "crop":
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        else:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image).reshape(size, size, channels)
    return 255 - array if invert else array
