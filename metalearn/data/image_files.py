"""Image files of many formats, in a folder or an archive, to uint8 arrays of one size."""

import functools
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from metalearn.data.depth import Extent, extent, is_deep, to_8_bits
from metalearn.data.files import Files, beginning
from metalearn.errors import DataError

# Formats that say what they are in their first bytes, and those that only an ending tells. Not
# EPS and WMF, which run other programs.
SIGNED = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "QOI", "PSD")
UNSIGNED = ("DDS", "DIB", "ICNS", "ICO", "MPO", "PCX", "SGI", "SUN", "TGA")
RAW = (".dng", ".nef", ".cr2", ".arw", ".orf", ".pef", ".srw", ".rw2")
"""What cameras write: TIFF with a small preview, which is not the picture."""
SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
PIXELS = 100_000_000  # an image that claims more is not decoded
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")

Fit = Literal["crop", "stretch"]
"""How an image is resized: its middle square, or the whole of it stretched to a square."""


class Images(NamedTuple):
    """The images of some files by their folder, both sorted; and other files by their ending."""

    classes: dict[str, list[str]]
    others: dict[str, list[str]]


class Survey(NamedTuple):
    """What the images of a data set have in common.

    grey: all have one channel. white: the value of white of those that are deep, None without any.
    deep, moving: how many have more than 8 bits, and more than one frame.
    """

    grey: bool
    white: float | None
    deep: int
    moving: int


@functools.cache
def formats() -> Mapping[str, str]:
    """The format of every ending that is read."""
    Image.init()
    read = {*SIGNED, *UNSIGNED} & set(Image.OPEN)
    return {ending: kind for ending, kind in Image.EXTENSION.items() if kind in read}


def images_in(files: Files) -> Images:
    """The images among `files`; hidden files and those of the system are neither.

    Of an ending that Pillow does not know, the first file decides whether its content is an image;
    without an ending every file does.
    """
    found: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    known: dict[str, bool] = {}
    for name in sorted(files.names):
        path = PurePosixPath(name)
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
        if hidden or path.name.lower() in SYSTEM:
            continue
        ending = path.suffix.lower()
        image = ending in formats() or (known.get(ending) if ending else None)
        if image is None:
            start = beginning(files, name)
            tests = [Image.OPEN[kind][1] for kind in SIGNED if kind in Image.OPEN]
            image = ending not in RAW and any(test and test(start) is True for test in tests)
            known[ending] = image
        if image:
            found[str(path.parent)].append(name)
        else:
            others[ending].append(name)
    return Images({label: sorted(found[label]) for label in sorted(found)}, others)


def by_class(files: Files) -> dict[str, list[str]]:
    """The images by their folder, both sorted; other and hidden files left out."""
    return images_in(files).classes


def shared_folders(labels: Sequence[str]) -> str:
    """The leading folders that all labels have in common, the last of each label left out."""
    first = labels[0].split("/")[:-1] if labels else []
    while first and not all(label.startswith("/".join(first) + "/") for label in labels):
        first.pop()
    return "/".join(first) + "/" if first else ""


def survey(files: Files, names: Iterable[str]) -> Survey:
    """Look at the head of every image, and at all of the deep ones. Raises DataError where one
    cannot be read, or where the values of the deep ones do not say what is white."""
    grey, deep, moving, all_values = True, 0, 0, Extent()
    for name in names:
        with files.open(name) as file, _readable(files, name):
            image = _opened(file, name)
            grey = grey and image.mode in GREY
            moving += image.format != "MPO" and bool(getattr(image, "is_animated", False))
            if not is_deep(image):
                continue
            deep += 1
            own = extent([image])
        try:
            all_values = all_values.joined(own)
            white = all_values.white
        except DataError as error:
            raise DataError(f"{name} in {files.path} {error}") from None
    return Survey(grey, white if deep else None, deep, moving)


def read_image(files: Files, name: str) -> Image.Image:
    """The image `name`, upright. Raises DataError where it cannot be read."""
    data = files.read(name)
    with _readable(files, name):
        image = _opened(io.BytesIO(data), name)
        image.load()
        upright = ImageOps.exif_transpose(image)
        # Pillow turns such a TIFF round at 8 bits alone.
        tags = getattr(image, "tag_v2", {})
        upright.info["white_is_zero"] = is_deep(image) and tags.get(262) == 0
        return upright


def _opened(file: BinaryIO, name: str) -> Image.Image:
    kind = formats().get(PurePosixPath(name).suffix.lower())
    # A wrong ending is common and harmless: whatever of these it is.
    first = [kind] if kind else []
    image = Image.open(file, formats=[*first, *(k for k in SIGNED if k in Image.OPEN)])
    if image.width * image.height > PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels")
    return image


@contextmanager
def _readable(files: Files, name: str) -> Iterator[None]:
    """Keep back what Pillow warns of and logs: an image can be read, or one line says why not."""
    logger = logging.getLogger("PIL.TiffImagePlugin")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:  # whatever Pillow's readers make of spoilt files
        # Pillow would name the bytes in memory, not the file.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format, or damaged" if unknown else " ".join(str(error).split())
        raise DataError(
            f"{name} in {files.path} is no image that can be read ({reason}); mend or remove it"
        ) from None
    finally:
        logger.disabled = before


def read_pixels(
    files: Files, name: str, size: int, channels: int, fit: Fit = "crop", invert: bool = False,
    white: float | None = None,
) -> np.ndarray:  # fmt: skip
    """The image `name` as `pixels` gives it. Raises DataError where it cannot be read."""
    image = read_image(files, name)
    try:
        return pixels(image, size, channels, fit, invert, white)
    except DataError as error:
        raise DataError(f"{name} in {files.path} {error}") from None


def pixels(
    image: Image.Image, size: int, channels: int, fit: Fit = "crop", invert: bool = False,
    white: float | None = None,
) -> np.ndarray:  # fmt: skip
    """uint8 [size, size, channels]; what is transparent becomes white.

    white: of an image of more than 8 bits, the value of white; None for what its own values say.
    Raises DataError where they say nothing.
    """
    if is_deep(image):
        image = to_8_bits(image, white)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "1", "LA", "P", "RGB", "RGBA"):
        # Those that Pillow brings to grey only by way of RGB, if at all.
        try:
            image = image.convert("RGB")
        except (ValueError, ImportError) as error:
            raise DataError(f"is of mode {image.mode}, which cannot be read ({error})") from None
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        if fit == "crop":
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        else:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image).reshape(size, size, channels)
    return 255 - array if invert else array
