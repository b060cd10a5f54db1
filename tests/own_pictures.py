"""Folders of a user's own pictures, and tiny runs to adapt to them."""

from pathlib import Path

import numpy as np
from PIL import Image

from metalearn.data import glyphs

SIDE = 16


def glyph_folders(
    place: Path, classes: int = 3, shots: int = 4, queries: int = 3, side: int = SIDE
) -> tuple[Path, Path]:
    """`support/<class>/<n>.png` and `images/<class>/<n>.png` of glyphs that no run has seen."""
    dataset = glyphs(classes=60, size=side)
    names = dataset.class_names("test")[:classes]
    for c, name in enumerate(names):
        every = dataset.images("test", np.array(c), np.arange(shots + queries))[:, 0]
        for n, pixels in enumerate(every):
            folder = place / ("support" if n < shots else "images") / name.replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{n}.png")
    return place / "support", place / "images"
