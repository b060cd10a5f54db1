"""Scenes: several images on one dark picture, with the box and the mask of each."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metalearn.data.paths import LARGEST
from metalearn.errors import DataError

_TRIES = 32  # places for an image, of which the one that overlaps least is taken
_INK = 0.5  # of the brightest of an image: from here on a pixel is its
MARGIN = 2  # pixels around it that are its mask too: strokes are a pixel or two wide


class Picture(NamedTuple):
    """pixels: uint8 `[C, size, size]`. boxes: float32 `[n, 4]`, x0 y0 x1 y1 in shares of the
    picture. mask: int64 `[size, size]`, k + 1 where image k is, of several the last, else 0."""

    pixels: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """size: pixels of a picture's side. objects: images in it, at most. distractors: further ones
    in each, of classes that nobody asks for. Raises DataError for numbers out of range."""

    size: int = 64
    objects: int = 3
    distractors: int = 1

    def __post_init__(self) -> None:
        wrong = not 1 <= self.objects <= 64 or not 0 <= self.distractors <= 64
        if wrong or not 8 <= self.size <= LARGEST:
            raise DataError(
                f"a scene needs a size of 8 to {LARGEST}, 1 to 64 objects and 0 to 64 distractors, "
                f"not size={self.size}, objects={self.objects}, distractors={self.distractors}"
            )

    def picture(self, images: np.ndarray, places: np.ndarray, shown: int) -> Picture:
        """Images uint8 `[n, C, h, w]` on black, the first `shown` of them with box and mask.

        places: uniform in [0, 1), `[n, tries, 2]`, where each may stand.
        """
        height, width = images.shape[2:]
        room = np.array([self.size - height + 1, self.size - width + 1])
        corners = (places * room).astype(np.int64)
        taken = np.zeros((0, 2), np.int64)
        pixels = np.zeros((images.shape[1], self.size, self.size), np.uint8)
        mask = np.zeros((self.size, self.size), np.int64)
        boxes = np.zeros((shown, 4), np.float32)
        for number, image in enumerate(images):
            # Overlap of tiles, in pixels, with what stands already.
            apart = np.abs(corners[number][:, None] - taken[None])
            over = np.clip(np.array([height, width]) - apart, 0, None).prod(2).sum(1)
            top, left = corner = corners[number][over.argmin()]
            taken = np.concatenate([taken, corner[None]])
            here = np.s_[top : top + height, left : left + width]
            pixels[:, *here] = np.maximum(pixels[:, *here], image)
            if number < shown:
                ink = image.max(0) >= _INK * image.max()  # all of an image that is dark
                rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
                low, high = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
                boxes[number] = (
                    np.array([*low, *high]) / self.size + np.tile([left, top], 2) / self.size
                )
                whole = np.zeros(mask.shape, bool)
                whole[here] = ink
                mask[_grown(whole)] = number + 1
        return Picture(pixels, boxes, mask)


def places_for(rng: np.random.Generator, images: int) -> np.ndarray:
    """What `Scene.picture` places so many images by."""
    return rng.random((images, _TRIES, 2))


def _grown(ink: np.ndarray) -> np.ndarray:
    """Every pixel that has ink within `MARGIN` rows and columns."""
    padded, side = np.pad(ink, MARGIN), 2 * MARGIN + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return np.asarray(windows.any((2, 3)))
