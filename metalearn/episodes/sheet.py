"""Contact sheets: what an episode, or a data set, looks like on one page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metalearn.data import ImageDataset, TensorDataset
from metalearn.episodes.few_shot import FewShotEpisodes
from metalearn.episodes.mixed import MixedEpisodes
from metalearn.errors import UsageError

TILE = 56  # pixels that an image gets at least, by whole multiples of its own
GAP, MARGIN, LINE = 4, 12, 16
PAPER, INK, RULE = "white", "black", (200, 60, 40)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def episode_sheet(source: FewShotEpisodes | MixedEpisodes, split: str, index: int) -> Image.Image:
    """Episode `index`: a column for each class, its support above the line, its queries below."""
    if isinstance(source.dataset, TensorDataset):
        raise UsageError(f"{source.dataset.name} has tensors, and no images to show")
    ids = source.draw(split, index)
    dataset = source.dataset.member(ids.member)
    names = dataset.splits[split].names(dataset.store)
    ways, shots = ids.support.shape
    columns = []
    for number, support, query in zip(ids.classes, ids.support, ids.query, strict=True):
        above = enlarged(dataset.images(split, number, support[support >= 0]))
        columns.append((above, enlarged(dataset.images(split, number, query[query >= 0]))))
    title = (
        f"{dataset.name}, {split} episode {index}, seed {source.seed}: {ways} classes, "
        f"{(ids.support >= 0).sum()} support above the line, {(ids.query >= 0).sum()} queries"
    )
    side = columns[0][1][0].width
    width, rows = side + GAP, shots + ids.query.shape[1]
    top = MARGIN + 3 * LINE
    step = max(width, 7 * LINE)
    wide = max(2 * MARGIN + ways * step, MARGIN + 7 * len(title))
    page, pen, font = new_page(wide, top + rows * width + 2 * GAP + MARGIN, title)
    for c, ((above, below), number) in enumerate(zip(columns, ids.classes, strict=True)):
        x = MARGIN + c * step
        write_name(pen, font, names[number], x, top - LINE, step - GAP)
        for tiles, y in ((above, top), (below, top + shots * width + 2 * GAP)):
            for row, tile in enumerate(tiles):
                page.paste(tile, (x, y + row * width))
    y = top + shots * width + GAP // 2
    pen.line((MARGIN, y, page.width - MARGIN, y), RULE, 2)
    return page


def class_sheet(
    dataset: ImageDataset, split: str, classes: int = 20, each: int = 10
) -> Image.Image:
    """The first images of the first classes of a split, a row for each class."""
    names = dataset.splits[split].names(dataset.store)[:classes]
    sizes = dataset.examples_in(split, np.arange(len(names)))
    rows = [
        enlarged(dataset.images(split, np.array(c), np.arange(min(each, size))))
        for c, size in enumerate(sizes)
    ]
    side = rows[0][0].width
    width, left = side + GAP, MARGIN + 10 * LINE
    total = dataset.class_count(split)
    title = f"{dataset.name}, {split}: {len(names)} of {total} classes, {dataset.digest[:12]}"
    high = MARGIN + 2 * LINE + len(rows) * width
    page, pen, font = new_page(left + each * width + MARGIN, high, title)
    for row, (tiles, name, size) in enumerate(zip(rows, names, sizes, strict=True)):
        y = MARGIN + 2 * LINE + row * width
        write_name(pen, font, name, MARGIN, y, 10 * LINE - GAP)
        pen.text((MARGIN, y + LINE), f"{size} images", "gray", font)
        for column, tile in enumerate(tiles):
            page.paste(tile, (left + column * width, y))
    return page


def new_page(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw, Font]:
    page, font = Image.new("RGB", (width, height), PAPER), ImageFont.load_default()
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), title, INK, font)
    return page, pen, font


def enlarged(images: np.ndarray) -> Sequence[Image.Image]:
    """uint8 [n, C, H, W] as PIL images, enlarged without smoothing."""
    times = max(1, -(-TILE // images.shape[-1]))
    channels = images.shape[1]
    shown = images[:, 0] if channels == 1 else images[:, :3].transpose(0, 2, 3, 1)
    large = shown.repeat(times, 1).repeat(times, 2)
    return [Image.fromarray(np.ascontiguousarray(image)).convert("RGB") for image in large]


def write_name(
    pen: ImageDraw.ImageDraw, font: Font, text: str, x: int, y: int, room: int, ink: Any = INK
) -> None:
    """Write `text`, its beginning left out where there is no room for it."""
    while len(text) > 4 and pen.textlength(text, font) > room:
        text = "..." + text.removeprefix("...")[1:]
    pen.text((x, y), text, ink, font)
