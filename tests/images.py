"""A data set of a few small images, made by a formula that no library version can change."""

from pathlib import Path

import numpy as np

from metalearn.data import ImageDataset
from metalearn.data.dataset import with_rotations, without_rotations
from metalearn.data.store import build_store

CLASSES = 12


def tiny_dataset(folder: Path, salt: int = 0, side: int = 4) -> ImageDataset:
    """12 classes of 6 to 8 images `[1, side, side]`.

    train: 5 of them in 4 rotations, 20 classes. val: 3. test: 4. `salt` changes every pixel.
    """

    def images(c: int) -> np.ndarray:
        count = 6 + c % 3
        place = np.arange(side * side)
        example = np.arange(count)[:, None]
        pixels = (place * (37 * c + 11) + example * 29 + place * place + salt) % 251
        return pixels.reshape(count, side, side, 1).astype(np.uint8)

    names = [f"class{c:02d}" for c in range(CLASSES)]
    store = build_store(folder / f"tiny{salt}-{side}", "tiny", names, map(images, range(CLASSES)))
    splits = {
        "train": with_rotations(np.arange(5)),
        "val": without_rotations(np.arange(5, 8)),
        "test": without_rotations(np.arange(8, 12)),
    }
    return ImageDataset("tiny", store, splits)
