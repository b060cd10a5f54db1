"""Contact sheets of a user's own images, as the network sees them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from metalearn.episodes.sheet import GAP, INK, LINE, MARGIN, RULE, enlarged, new_page, write_name

_WIDE = 7 * LINE  # what two lines of text want
_SHOWN = 24  # images of a class, or on a page


def shots_sheet(pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """A row for each class. pixels: uint8 `[n, H, W, C]`; labels `[n]`."""
    rows = [enlarged(_first(pixels[labels == c][:_SHOWN])) for c in range(len(classes))]
    counts = [int((labels == c).sum()) for c in range(len(classes))]
    side, left = rows[0][0].width, MARGIN + _WIDE
    high = max(side, 2 * LINE) + GAP
    wide = left + max(map(len, rows)) * (side + GAP) + MARGIN
    title = f"support: {sum(counts)} images of {len(classes)} classes"
    page, pen, font = new_page(
        max(wide, MARGIN * 2 + 7 * len(title)), MARGIN + 2 * LINE + len(rows) * high + MARGIN, title
    )
    for row, (tiles, name, count) in enumerate(zip(rows, classes, counts, strict=True)):
        y = MARGIN + 2 * LINE + row * high
        write_name(pen, font, _plain(name), MARGIN, y, _WIDE - GAP)
        more = f", {len(tiles)} shown" if count > len(tiles) else ""
        pen.text((MARGIN, y + LINE), f"{count} images{more}", "gray", font)
        for column, tile in enumerate(tiles):
            page.paste(tile, (left + column * (side + GAP), y))
    return page


def answers_sheet(
    pixels: np.ndarray, lines: Sequence[Sequence[str]], title: str, wrong: Sequence[bool] = ()
) -> Image.Image:
    """Images with lines of text below each, in rows. pixels: uint8 `[n, H, W, C]`, the first
    of which are shown. wrong: of which the last line is set off."""
    tiles = enlarged(_first(pixels[:_SHOWN]))
    side = tiles[0].width
    width = max(side, _WIDE) + 2 * GAP
    deep = max(map(len, lines[:_SHOWN]))
    high, across = side + deep * LINE + 2 * GAP, min(6, len(tiles))
    down = -(-len(tiles) // across)
    wide = max(2 * MARGIN + across * width, 2 * MARGIN + 7 * len(title))
    page, pen, font = new_page(wide, MARGIN + 2 * LINE + down * high, title)
    for place, tile in enumerate(tiles):
        x = MARGIN + place % across * width
        y = MARGIN + 2 * LINE + place // across * high
        page.paste(tile, (x, y))
        for row, text in enumerate(lines[place]):
            last = place < len(wrong) and wrong[place] and row == len(lines[place]) - 1
            write_name(pen, font, _plain(text), x, y + side + 2 + row * LINE, width - GAP,
                       RULE if last else INK)  # fmt: skip
    return page


def _first(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2)


def _plain(text: str) -> str:
    """One line of what the font can draw."""
    return " ".join(text.encode("latin-1", "replace").decode("latin-1").split())
