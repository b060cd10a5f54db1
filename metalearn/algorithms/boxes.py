"""Boxes on a grid of places: what a place answers, which place answers for which box, how well.

A box is [x0, y0, x1, y1] in shares of the picture's width and height, 0 to 1: no size of a picture
matters. Places of an `h x w` grid are numbered row by row, P = h * w.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Batch, Targets

BACKGROUND = 0
"""The class of a place that no object has; the classes of a task are 1 to N there."""


class Boxes(NamedTuple):
    """What stands in B pictures, M places for each: `boxes` `[B, M, 4]`, `labels` int64 `[B, M]`
    from 0, `valid` `[B, M]`, 0 where there is none."""

    boxes: Tensor
    labels: Tensor
    valid: Tensor


def labels_of(y: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """`labels` and `valid`, `[..., M]`; of pictures of one class their `label`, as `[..., 1]`."""
    labels = y["labels"] if "labels" in y else y["label"].unsqueeze(-1)
    return labels, y.get("valid", torch.ones_like(labels))


def boxes_of(y: Targets) -> Boxes:
    """Raises UsageError for targets without boxes."""
    if not isinstance(y, dict) or "boxes" not in y or not ("labels" in y or "label" in y):
        raise UsageError(
            "loss=detection takes targets {boxes: [B, M, 4], labels: [B, M], valid: [B, M]}; use "
            "task=detection and a data set with boxes"
        )
    labels, valid = labels_of(y)
    return Boxes(y["boxes"], labels.expand(y["boxes"].shape[:-1]), valid.expand(labels.shape))


def centres(height: int, width: int, like: Tensor) -> Tensor:
    """`[P, 2]`, x and y of each place's middle."""
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], 1)


def decoded(sides: Tensor) -> Tensor:
    """The boxes `[B, P, 4]` of the numbers `[B, 4, h, w]` of a grid.

    The sides lie softplus(number) places left, above, right and below of the middle of the place:
    smooth, and never without area.
    """
    height, width = sides.shape[-2:]
    middle = centres(height, width, sides)
    reach = F.softplus(sides).flatten(-2).mT
    reach = reach / reach.new_tensor([width, height, width, height])
    return torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1)


def area(boxes: Tensor) -> Tensor:
    """`[...]` of `[..., 4]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """`[...]` of boxes `[..., 4]`, -1 to 1: IoU - |hull without both| / |hull|.

    Rezatofighi, Tsoi, Gwak, Sadeghian, Reid, Savarese: Generalized Intersection over Union, 2019,
    algorithm 1. A hull without area counts as a hull of almost none.
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    union = area(a) + area(b) - inside
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(-1)
    least = torch.finfo(hull.dtype).eps
    return inside / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


class Assigned(NamedTuple):
    """What each place answers for: `labels` int64 `[B, P]`, `BACKGROUND` or a class from 1;
    `boxes` `[B, P, 4]`; `positive` bool `[B, P]`."""

    labels: Tensor
    boxes: Tensor
    positive: Tensor


def assigned(found: Boxes, height: int, width: int, radius: float) -> Assigned:
    """A place answers for a box that its middle is inside of, and not more than `radius` places
    from the middle of; and the place that the middle of a box lies in answers for it. Of several
    the smallest (Tian et al. 2019, section 3.1, with centre sampling)."""
    boxes, valid = found.boxes, found.valid > 0
    point = centres(height, width, boxes)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]  # [B, M, 1, 2]
    middle = (low + high) / 2
    cells = point.new_tensor([width, height])
    inside = ((point > low) & (point < high)).all(-1)
    near = ((point - middle).abs() * cells <= radius).all(-1)
    own = (torch.floor(point * cells) == torch.floor(middle.clamp(0, 1 - 1e-6) * cells)).all(-1)
    takes = valid.unsqueeze(-1) & ((inside & near) | own)  # [B, M, P]
    size = torch.where(takes, area(boxes).unsqueeze(-1), torch.inf)
    smallest = size.argmin(-2)  # [B, P]
    positive = takes.any(-2)
    labels = torch.where(positive, found.labels.gather(-1, smallest) + 1, BACKGROUND)
    each = smallest.unsqueeze(-1).expand(*smallest.shape, 4)
    return Assigned(labels, boxes.gather(-2, each), positive)


def check_pictures(
    algo: Any,
    support: Batch,
    query: Batch | None,
    form: Callable[[Targets], object],
    values: Callable[[str, Batch], None],
) -> None:
    """Raise UsageError for targets of another task, as `form` finds, that cannot be right, as
    `values` does of a batch and its name, or of wrong classes."""
    given = {"support": support} if query is None else {"support": support, "query": query}
    for batch in given.values():
        form(batch.y)
    given = {name: _with_tasks(batch) for name, batch in given.items()}
    for name, batch in given.items():
        values(name, batch)
    _check_classes(algo, **given)


def _with_tasks(batch: Batch) -> Batch:
    """A batch with a leading T; of one task without, T is 1."""
    one = labels_of(batch.y)[0].ndim == 2
    return batch.map(lambda t: t.unsqueeze(0)) if one else batch


def _check_classes(algo: Any, support: Batch, query: Batch | None = None) -> None:
    """Raise UsageError where the classes of a task's support set are not 0 to N - 1, or more than
    the head of the network has, or a query has another."""
    heads = {n.rpartition("head.")[2]: len(w) for n, w in algo.net.params.items() if w.ndim}
    ways = heads["weight"] - 1 if "weight" in heads else None
    labels, real = _listed(support)
    asked = None if query is None else _listed(query)
    for task in range(len(labels)):
        there = set(labels[task][real[task]].tolist())
        if not there:
            raise UsageError(
                f"the support set of task {task} has no object; give every class a box or a mask"
            )
        if there != set(range(len(there))):
            told = ", ".join(map(str, sorted(there)[:5]))
            raise UsageError(
                f"the support set of task {task} has the classes {told}; number those of a task "
                "from 0 on without a gap"
            )
        if ways is not None and len(there) > ways:
            raise UsageError(
                f"task {task} has {len(there)} classes, and the network answers for {ways}; use "
                f"outputs={len(there)}"
            )
        if asked is not None:
            others = set(asked[0][task][asked[1][task]].tolist()) - there
            if others:
                raise UsageError(
                    f"class {min(others)} of the queries of task {task} has no support example; "
                    "leave it out, or give it one"
                )


def _listed(batch: Batch) -> tuple[Tensor, Tensor]:
    """The classes `[T, B, M]` and which are there, bool."""
    labels, valid = labels_of(batch.y)
    return labels.cpu(), real(batch, valid.cpu())


def real(batch: Batch, valid: Tensor) -> Tensor:
    """Which of `valid` `[T, B, M]` are there, padded pictures left out, bool."""
    there = valid > 0
    return there if batch.weight is None else there & (batch.weight.cpu() > 0).unsqueeze(-1)
