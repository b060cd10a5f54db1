"""Images of more than 8 bits, or of floats: which value is white."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from metalearn.errors import DataError

DEPTHS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""The white of 8, 10, 12, 14 and 16 bits: cameras and microscopes store all of them in 16."""
OVER = 0.1  # how far floats, resampled before, may go beyond black and white


class Extent(NamedTuple):
    """The lowest and the highest value of images, and whether they are floats."""

    low: float = 0.0
    high: float = 0.0
    floats: bool = False

    def joined(self, other: "Extent") -> "Extent":
        """That of both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Extent(low, high, self.floats or other.floats)

    @property
    def white(self) -> float:
        """The value of white: 1 for floats that go no further, else the smallest of DEPTHS that
        contains all. Raises DataError where there is none."""
        if self.floats and self.high <= 1 + OVER and self.low >= -OVER:
            return 1.0
        whole = not self.floats or self.high >= 16  # below, it is neither 0 to 1 nor 0 to 255
        found = next((depth for depth in DEPTHS if self.high <= depth), None)
        if found is None or self.low < (-OVER * found if self.floats else 0) or not whole:
            raise DataError(
                f"has values of {self.low:g} to {self.high:g}, of which nothing says what is black "
                "and white; convert it to 8 or 16 bits"
            )
        return found


def is_deep(image: Image.Image) -> bool:
    """Whether the values of an image go beyond 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def extent(images: Iterable[Image.Image]) -> Extent:
    """That of all images together, of which NaN and infinities are no part."""
    found = Extent()
    for image in images:
        values = np.asarray(image)
        finite = values[np.isfinite(values)] if image.mode == "F" else values
        if finite.size:
            own = Extent(float(finite.min()), float(finite.max()), image.mode == "F")
            found = found.joined(own)
    return found


def to_8_bits(image: Image.Image, white: float | None = None) -> Image.Image:
    """A deep image in mode L. white: its value of white, None for what its own values say; NaN
    becomes black. Raises DataError where they say nothing."""
    white = extent([image]).white if white is None else white
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=white, neginf=0)
    if image.info.get("white_is_zero"):
        values = white - values
    # Of whole numbers the upper 8 bits.
    scaled = np.rint(values * 255) if white == 1 else np.floor(values * 256 / (white + 1))
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
