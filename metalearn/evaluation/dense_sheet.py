"""A picture of one episode of detection or segmentation: what was given, and what was answered."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from metalearn.algorithms.boxes import boxes_of
from metalearn.backbones.dense import resized
from metalearn.episodes import Manifest
from metalearn.evaluation.average_precision import kept
from metalearn.functional.outputs import tensor_of
from metalearn.inner.loop import adapt, detached_gradient
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Episodes, Given, Meta

NAME = "answers.png"
SHOWN = 6  # pictures in a row
COLOURS = ("#4c9ef0", "#f0b429", "#58c27d", "#e05d9a", "#9b7bea", "#f07a3f", "#45c4c4", "#b0b0b0")
"""Of the classes of an episode, in their order."""
_FOUND = 0.5  # of intersection over union


class Evaluated(Protocol):
    """What answers: an algorithm, its inner steps in evaluation (None for its own), its device."""

    algo: MetaAlgorithm
    evaluation_steps: int | None
    device: torch.device


def draw_answers(stage: Evaluated, meta: Meta, manifest: Manifest, folder: Path) -> None:
    """Write `answers.png` of the first episode of `manifest` to `folder`; nothing of another task.

    Of a detection: the support boxes by class, and on the queries as many of the surest boxes as
    there are objects: found (solid), missed (dotted) and wrong (thin, red). Of a segmentation: the
    support masks, those of the queries, and the answers.
    """
    algo, device = stage.algo, stage.device
    loss: Any = getattr(algo, "loss", None)
    if not hasattr(loss, "shares"):
        return
    episodes = manifest.source.batch(manifest.split, [0]).map(lambda t: t[0].to(device))
    episodes = Episodes(episodes.support, episodes.query)
    with torch.no_grad(), algo.net.evaluating():
        given = Given(episodes.support)
        fast = adapt(algo, meta, given, stage.evaluation_steps, gradient=detached_gradient)
        outputs = tensor_of(algo.predict(meta, fast, episodes.query.x))
        found = loss.answers(outputs) if hasattr(loss, "answers") else outputs
    sheet = _boxes(episodes, found) if isinstance(found, dict) else _masks(episodes, found)
    FigureCanvasAgg(sheet)
    sheet.savefig(folder / NAME, dpi=110)


def _boxes(episodes: Episodes, found: dict[str, Tensor]) -> Figure:
    figure, rows = _sheet(("support", "queries"), episodes)
    _pictures(rows[0], episodes.support)
    _pictures(rows[1], episodes.query)
    for axes, boxes, labels, valid in zip(rows[0], *_true(episodes.support), strict=False):
        for box, label in zip(boxes[valid], labels[valid], strict=True):
            _box(axes, box, label, "-")
    true = _true(episodes.query)
    for number, (axes, boxes, labels, valid) in enumerate(zip(rows[1], *true, strict=False)):
        boxes, labels = boxes[valid], labels[valid]
        told = kept({name: t[number].cpu() for name, t in found.items()})
        told = {name: t[: len(boxes)].numpy() for name, t in told.items()}
        left = list(range(len(boxes)))
        for box, label in zip(told["boxes"], told["labels"], strict=True):
            over = [_iou(box, boxes[n]) if labels[n] == label else 0.0 for n in left]
            if over and max(over) >= _FOUND:
                left.pop(int(np.argmax(over)))
                _box(axes, box, label, "-")
            else:
                _box(axes, box, label, "-", wrong=True)
        for n in left:
            _box(axes, boxes[n], labels[n], ":")
    lines = [("found", "-", "#dddddd", 2.0), ("missed", ":", "#dddddd", 2.0)]
    lines.append(("wrong", "-", "#ff3b30", 1.0))
    handles = [Line2D([], [], ls=ls, color=c, lw=lw, label=name) for name, ls, c, lw in lines]
    figure.legend(handles=handles, loc="lower right", ncols=3, frameon=False, labelcolor="#dddddd")
    return figure


def _masks(episodes: Episodes, outputs: Tensor) -> Figure:
    figure, rows = _sheet(("support", "queries", "answers"), episodes)
    mask = episodes.query.y["mask"]
    answer = resized(outputs.clamp(min=torch.finfo(outputs.dtype).min / 4), mask.shape[-2:])
    for row, batch, masks in (
        (rows[0], episodes.support, episodes.support.y["mask"]),
        (rows[1], episodes.query, mask),
        (rows[2], episodes.query, answer.argmax(1)),
    ):
        _pictures(row, batch, masks.cpu().numpy())
    return figure


def _sheet(names: tuple[str, ...], episodes: Episodes) -> tuple[Figure, list[list[Axes]]]:
    columns = min(SHOWN, max(len(episodes.support.x), len(episodes.query.x)))
    figure = Figure((1.9 * columns + 0.5, 2.0 * len(names) + 0.4), facecolor="#1b1b1f")
    grid = figure.subplots(len(names), columns, squeeze=False)
    figure.subplots_adjust(0.06, 0.08, 0.99, 0.99, 0.04, 0.04)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, name in enumerate(names):
        box = grid[place][0].get_position()
        middle = (box.y0 + box.y1) / 2
        figure.text(0.02, middle, name, rotation=90, va="center", color="#dddddd")
    return figure, [list(row) for row in grid]


def _pictures(row: list[Axes], batch: Batch, masks: np.ndarray | None = None) -> None:
    pixels = batch.x.detach().cpu().float()
    low, high = pixels.amin(), pixels.amax()  # of any transform of the images
    pixels = ((pixels - low) / (high - low).clamp(min=1e-6)).movedim(1, -1)[..., :3].numpy()
    pixels = np.broadcast_to(pixels, (*pixels.shape[:-1], 3))
    for number, (axes, picture) in enumerate(zip(row, pixels, strict=False)):
        if masks is not None:
            colours = np.array([(0.0, 0.0, 0.0), *map(to_rgb, COLOURS)])
            mask = masks[number]
            colour = colours[np.where(mask > 0, (mask - 1) % len(COLOURS) + 1, 0)]
            picture = np.where((mask > 0)[..., None], 0.35 * picture + 0.65 * colour, picture)
        axes.imshow(picture, extent=(0, 1, 1, 0), interpolation="nearest")


def _true(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = boxes_of(batch.map(lambda t: t.detach().cpu()).y)
    return found.boxes.numpy(), found.labels.numpy(), found.valid.numpy() > 0


def _box(axes: Axes, box: np.ndarray, label: int, style: str, wrong: bool = False) -> None:
    x0, y0, x1, y1 = (float(v) for v in box)
    colour = COLOURS[int(label) % len(COLOURS)]
    edge, width = ("#ff3b30", 1.0) if wrong else (colour, 2.0)
    kind = {"fill": False, "ec": edge, "lw": width, "ls": style}
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **kind))
    axes.text(x0 + 0.01, y0 + 0.01, str(int(label)), color=colour, fontsize=7, va="top")


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = float(np.clip(high - low, 0, None).prod())
    union = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - both
    return both / union if union > 0 else 0.0
