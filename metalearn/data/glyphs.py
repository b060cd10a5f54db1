"""An embedded data set that needs no download: characters made of random strokes.

A class is a skeleton of 2 to 4 strokes; a drawing of it moves the control points, strokes and
whole as a hand does. The task is Omniglot's (Lake et al. 2015) in kind, at no licence and no
download. Every figure comes from one PCG64 stream per (seed, class), so that a class does not
depend on how many there are.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from metalearn.data.dataset import ImageDataset, without_rotations
from metalearn.data.paths import Source
from metalearn.data.scenes import Scene
from metalearn.data.store import build_store, open_store
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder

VERSION = 3  # raise it whenever a change below changes a pixel
SOURCE = Source("made", f"glyphs-v{VERSION}")
POINTS = 64  # drawn points a stroke; under a pixel apart at 28x28
LARGEST = 512  # pixels a side: beyond, the points of a stroke part, and a class takes minutes
MARGIN = 0.14  # of the width, kept free around the skeleton on each side


def glyphs(
    root: Path | None = None, size: int = 28, classes: int = 1200, drawings: int = 20, seed: int = 0
) -> ImageDataset:
    """Random characters, [1, size, size]: two thirds train, an eighth val, the rest test.

    With 1200 classes that is 800, 150 and 250. The images are kept under `root`, else under the
    cache folder, and are made only once. Raises DataError for fewer than 24 classes,
    no drawings, a size below 8 or above `LARGEST`, or a seed below 0.
    """
    if classes < 24 or drawings < 1 or not 8 <= size <= LARGEST or seed < 0:
        raise DataError(
            f"glyphs: needs classes >= 24, drawings >= 1, a size of 8 to {LARGEST} and seed >= 0"
        )
    key = f"{size}px-{classes}x{drawings}-seed{seed}"
    folder = (root or cache_folder()) / f"{SOURCE.store}-{key}"
    if folder.exists():
        store = open_store(folder)
    else:
        names = [f"glyph{c:05d}" for c in range(classes)]
        blocks = (_class_images(seed, c, drawings, size) for c in range(classes))
        store = build_store(folder, "glyphs", names, blocks)
    train, val = classes * 2 // 3, classes // 8
    splits = {
        "train": without_rotations(np.arange(train)),
        "val": without_rotations(np.arange(train, train + val)),
        "test": without_rotations(np.arange(train + val, classes)),
    }
    return ImageDataset("glyphs", store, splits)


def glyph_scenes(
    root: Path | None = None,
    size: int = 64,
    glyph: int = 24,
    objects: int = 3,
    distractors: int = 1,
    classes: int = 1200,
    drawings: int = 20,
    seed: int = 0,
) -> ImageDataset:
    """Pictures [1, size, size] of several of the `glyphs`, with the box and the mask of each.

    glyph: pixels of a side of one. objects: of the classes of an episode in a picture, at most.
    distractors: of other classes of the split, in each; part of the background. Raises DataError
    as `glyphs` does, or for pictures that cannot hold them.
    """
    scene = Scene(size, objects, distractors)
    if glyph > size:
        raise DataError(f"glyph_scenes: glyph={glyph} must be at most size={size}")
    return replace(glyphs(root, glyph, classes, drawings, seed), name="glyph_scenes", scene=scene)


def _class_images(seed: int, number: int, drawings: int, size: int) -> np.ndarray:
    """All drawings of one class: uint8 [drawings, size, size, 1]."""
    stream = np.random.SeedSequence(seed, spawn_key=(number,))
    rng = np.random.Generator(np.random.PCG64(stream))
    points, pens = _drawings(rng, _skeleton(rng), drawings)
    return _render(points, pens, size)[..., None]


def _skeleton(rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes of one character: control points [3 to 6, 2] each, in the unit box."""
    strokes: list[np.ndarray] = []
    for _ in range(rng.integers(2, 5)):
        if strokes and rng.random() < 0.5:  # letters' strokes often start on another one
            other = strokes[rng.integers(len(strokes))]
            start = other[rng.integers(len(other))]
        else:
            start = rng.uniform(0.05, 0.95, 2)
        strokes.append(_stroke(rng, start))
    # Fill the box, or nearly: characters are written to one line height.
    every = np.concatenate(strokes)
    low, high = every.min(0), every.max(0)
    span = np.maximum(high - low, 0.5 * (high - low).max())
    box = 1 - 2 * MARGIN
    middle = (low + high) / 2
    return [(s - middle) / span * box + 0.5 for s in strokes]


def _stroke(rng: np.random.Generator, start: np.ndarray) -> np.ndarray:
    """A walk that keeps its bend, and now and then has a corner: control points [3 to 6, 2]."""
    count = int(rng.integers(2, 6))
    heading = rng.uniform(0, 2 * np.pi)
    bend = rng.normal(0, 0.7)
    step = rng.uniform(0.6, 1.2) / count
    points = [start]
    for _ in range(count):
        # Turn towards the middle where the next step would leave the box.
        ahead = points[-1] + step * np.array([np.cos(heading), np.sin(heading)])
        if (ahead < 0).any() or (ahead > 1).any():
            towards = 0.5 - points[-1]
            heading = np.arctan2(towards[1], towards[0]) + rng.normal(0, 0.5)
            ahead = points[-1] + step * np.array([np.cos(heading), np.sin(heading)])
        points.append(ahead)
        heading += bend if rng.random() < 0.8 else rng.uniform(-2.2, 2.2)
    return np.array(points)


def _drawings(
    rng: np.random.Generator, skeleton: list[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """`count` hands' versions: drawn points [count, strokes * POINTS, 2] in the unit box, and the
    widths of their pens [count]."""
    hands, noises = [], []
    for _ in range(count):  # everything of one hand after the other
        turn, shear = rng.normal(0, 0.14), rng.normal(0, 0.16)
        scale = np.exp(rng.normal(-0.07, 0.10) + rng.normal(0, 0.08, 2))
        shift = rng.normal(0, 0.04, 2)
        noises.append([(rng.normal(0, 0.03, 2), rng.normal(0, 0.028, c.shape)) for c in skeleton])
        hands.append((shear, np.cos(turn), np.sin(turn), *scale, *shift, rng.uniform(0.04, 0.07)))
    columns = np.array(hands).reshape(count, -1).T[..., None]
    shear, cos, sin, width, height, right, down = columns[:-1]
    curves = []
    for control, noise in zip(skeleton, zip(*noises, strict=True), strict=True):
        whole, own = (np.stack(part) for part in zip(*noise, strict=True))
        curve = _curve(control + whole[:, None] + own) - 0.5
        x, y = curve[..., 0] * width, curve[..., 1] * height
        x = x + shear * y
        # Written out: a matrix product's last bits depend on the BLAS.
        x, y = cos * x - sin * y, sin * x + cos * y
        curves.append(np.stack([x + right + 0.5, y + down + 0.5], -1))
    return np.concatenate(curves, 1), columns[-1, :, 0]


def _curve(control: np.ndarray) -> np.ndarray:
    """Points [n, POINTS, 2] on the uniform Catmull-Rom splines through `control` [n, k, 2], with
    k >= 2."""
    first, last = 2 * control[:, 0] - control[:, 1], 2 * control[:, -1] - control[:, -2]
    p = np.concatenate([first[:, None], control, last[:, None]], 1)
    pieces = control.shape[1] - 1
    at = np.linspace(0, pieces, POINTS)
    piece = np.minimum(at.astype(int), pieces - 1)
    t = (at - piece)[:, None]
    a, b, c, d = (p[:, piece + i] for i in range(4))
    square = 2 * a - 5 * b + 4 * c - d
    cube = 3 * b - a - 3 * c + d
    return 0.5 * (2 * b + (c - a) * t + square * t * t + cube * t * t * t)


def _render(points: np.ndarray, pens: np.ndarray, size: int) -> np.ndarray:
    """Draw points [n, p, 2] of the unit box with round pens, antialiased: uint8 [n, size, size]."""
    reach = (pens * size / 2 + 0.5).astype(np.float32)
    points = (points * size).astype(np.float32)
    # No ink is further than `reach` from a point: only the square of pixels around it is looked at.
    around = np.arange(-np.ceil(reach.max()), np.ceil(reach.max()) + 1, dtype=np.float32)
    pixels = np.floor(points)[..., None] + around  # [n, p, 2, w]
    squares = (pixels + np.float32(0.5) - points[..., None]) ** 2
    squares[(pixels < 0) | (pixels >= size)] = np.inf
    place = np.clip(pixels, 0, size - 1).astype(np.intp)
    image = np.arange(len(points))[:, None, None, None] * size
    places = (image + place[:, :, 1, :, None]) * size + place[:, :, 0, None, :]
    distance = np.full((len(points), size, size), np.inf, np.float32)
    near = squares[:, :, 1, :, None] + squares[:, :, 0, None, :]
    np.minimum.at(distance.reshape(-1), places.reshape(-1), near.reshape(-1))
    ink = np.clip(reach[:, None, None] - np.sqrt(distance), 0, 1)
    return (ink * np.float32(255) + np.float32(0.5)).astype(np.uint8)
