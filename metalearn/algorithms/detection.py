"""The loss of a one-stage detector, for any meta-algorithm: pure, and smooth but for the corners of
boxes that pass one another.

    L = sum over places of FL(p, class) / P + lambda * mean over positive places of (1 - GIoU)

of each picture, P its positive places; then the mean over pictures. FL(p, y) = -(1 - p_y)^gamma
log p_y among N classes and the background. Which place is positive is FCOS's rule (`boxes`).

Tian, Shen, Chen, He: FCOS: Fully Convolutional One-Stage Object Detection, 2019; Lin, Goyal,
Girshick, He, Dollar: Focal Loss for Dense Object Detection, 2017.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.algorithms.boxes import (
    Assigned,
    assigned,
    boxes_of,
    check_pictures,
    decoded,
    generalised_iou,
    real,
)
from metalearn.algorithms.losses import is_there, mean
from metalearn.backbones.dense import SIDES
from metalearn.classifiers.classes import absent
from metalearn.errors import UsageError
from metalearn.functional.outputs import tensor_of
from metalearn.types import Batch, Metrics, Outputs, Targets

CANDIDATES = 1000
"""Boxes of a picture, with a class each, that are looked at: the surest, as FCOS takes them. Fewer
would be all of the one or two classes that a picture looks most like, a place having a box of each
class, and leave the others without an answer."""


@dataclass(frozen=True)
class Detection:
    """Of outputs `[B, 1 + N + 4, h, w]`, background first, and targets `boxes` `[B, M, 4]` (x0, y0,
    x1, y1 in shares of the picture), `labels` `[B, M]`, `valid` `[B, M]`, 0 for padding.

    gamma: of the focal loss, 0 for cross-entropy. boxes: lambda. radius: in places, of the part of
    a box that answers for it. Metrics loss, class_loss and box_loss. Raises UsageError.
    """

    gamma: float = 2.0
    boxes: float = 1.0
    radius: float = 1.5
    sides = SIDES

    def __post_init__(self) -> None:
        for name in ("gamma", "boxes", "radius"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"loss.{name}={getattr(self, name)} must be 0 or more")

    def __call__(self, outputs: Outputs, batch: Batch, /) -> tuple[Tensor, Metrics]:
        """The scalar loss of one task, and its metrics."""
        logits, sides = self._split(outputs)
        places = self._assigned(batch, logits)
        positive = places.positive.to(logits.dtype)
        each = positive.sum(-1).clamp(min=1)
        classes = self._focal(logits.flatten(-2).mT, places.labels).sum(-1) / each
        near = 1 - generalised_iou(decoded(sides), places.boxes.to(sides.dtype))
        boxes = torch.where(places.positive, near, 0).sum(-1) / each
        class_loss, box_loss = mean(classes, batch.weight), mean(boxes, batch.weight)
        loss = class_loss + self.boxes * box_loss
        told = {"loss": loss, "class_loss": class_loss, "box_loss": box_loss}
        return loss, {name: value.detach() for name, value in told.items()}

    def _focal(self, logits: Tensor, labels: Tensor) -> Tensor:
        """`[B, P]` of logits `[B, P, 1 + N]`."""
        whole = logits.logsumexp(-1)
        own_logits = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        # Prototypes have no background where the support boxes take all places.
        there = is_there(own_logits) | own_logits.isinf()
        log_p = torch.where(there, own_logits - whole, 0)
        if not self.gamma:
            return -log_p
        # As in `losses.focal`: a power of 1 - p_y has no second derivative where p_y is 1.
        own = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
        others = torch.where(own, absent(logits), logits).logsumexp(-1) - whole
        return -(self.gamma * others).exp() * log_p

    def _split(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        outputs = tensor_of(outputs)
        if outputs.ndim != 4 or outputs.shape[1] < SIDES + 2:
            raise UsageError(
                f"loss=detection takes outputs [B, 1 + N + 4, h, w], not {list(outputs.shape)}; "
                "use head=detection"
            )
        return outputs[:, :-SIDES], outputs[:, -SIDES:]

    def _assigned(self, batch: Batch, maps: Tensor) -> Assigned:
        found = boxes_of(batch.y)
        found, (height, width) = found._replace(boxes=found.boxes.to(maps.dtype)), maps.shape[-2:]
        return assigned(found, height, width, self.radius)

    def shares(self, batch: Batch, maps: Tensor, columns: int) -> Tensor:
        """`[B, columns, h, w]`: 1 where a place of `maps` `[B, D, h, w]` is of the class."""
        labels = self._assigned(batch, maps).labels
        hot = labels.unsqueeze(-2) == torch.arange(columns, device=maps.device).unsqueeze(-1)
        return hot.to(maps.dtype).unflatten(-1, tuple(maps.shape[-2:]))

    @torch.no_grad()
    def answers(self, outputs: Outputs) -> dict[str, Tensor]:
        """The `CANDIDATES` surest boxes of each picture, or as many as there are, before any are
        left out for another: `boxes` `[B, k, 4]`, `scores` `[B, k]`, `labels` int64 `[B, k]` from
        0."""
        logits, sides = self._split(outputs)
        scores = logits.flatten(-2).mT.softmax(-1)[..., 1:]
        classes = scores.shape[-1]
        best, place = scores.flatten(-2).topk(min(CANDIDATES, scores.shape[-2] * classes))
        row = (place // classes).unsqueeze(-1).expand(*place.shape, 4)
        boxes = decoded(sides).clamp(0, 1).gather(-2, row)
        return {"boxes": boxes, "scores": best, "labels": place % classes}

    def check_form(self, y: Targets) -> None:
        """Raise UsageError for targets of another task."""
        boxes_of(y)

    def check(self, algo: Any, support: Batch, query: Batch | None) -> None:
        """Raise UsageError for targets, with a leading T, that cannot be right: no box in a support
        set, a box without area, not x0 y0 x1 y1, or beyond its picture; or for wrong classes."""
        check_pictures(algo, support, query, boxes_of, _check_boxes)


def _check_boxes(name: str, batch: Batch) -> None:
    found = boxes_of(batch.y)
    if found.boxes.shape[-1] != 4:
        raise UsageError(f"boxes are {list(found.boxes.shape)}; give [B, M, 4], x0 y0 x1 y1")
    boxes = found.boxes.detach().cpu()
    there = real(batch, found.valid.cpu())
    outside = ((boxes < 0) | (boxes > 1)).any(-1) | ~boxes.isfinite().all(-1)
    backward = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    flat = (boxes[..., 2:] == boxes[..., :2]).any(-1)
    for wrong, told in (
        (backward, "is not x0 y0 x1 y1, left above right below; turn x y width height into that"),
        (flat, "has no area; leave it out by valid=0, or correct it"),
        (outside, "lies beyond its picture, 0 to 1 of its width and height; divide pixels by them"),
    ):
        if (wrong & there).any():
            at = (wrong & there).nonzero()[0].tolist()
            box = " ".join(f"{v:g}" for v in boxes[tuple(at)].tolist())
            task, *rest = at
            raise UsageError(
                f"box {rest[-1]} of {name} picture {rest[0]} of task {task} ({box}) {told}"
            )
