"""Average precision of boxes, by torchmetrics.

AP50 is that of COCO's definition at an intersection over union of 0.5, interpolated at 101 recalls,
the mean over the classes that the pictures show; of novel classes it is called nAP50 (Wang et al.
2020). Of the boxes of one class in a picture that overlap by more than `OVERLAP`, the surest stays,
and of what stays the `KEPT` surest, as in COCO's measure.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metalearn.algorithms.boxes import boxes_of
from metalearn.errors import UsageError
from metalearn.types import Batch

OVERLAP = 0.6
"""Intersection over union, as FCOS has it."""
KEPT = 100
"""Boxes of a picture, of all classes."""
_SCALE = 1000.0  # of shares of a picture: torchmetrics tells small objects apart by pixels


def check_torchmetrics() -> None:
    """Raise UsageError where what measures detection is not installed."""
    missing = [n for n in ("torchmetrics", "pycocotools") if importlib.util.find_spec(n) is None]
    if missing:
        raise UsageError(
            f"task=detection is measured by {' and '.join(missing)}, not installed here; "
            "pip install 'metalearn-torch[detection]'"
        )


def kept(answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of one picture's `boxes` `[k, 4]`, `scores` `[k]` and `labels` `[k]`, the `KEPT` surest that
    no surer one of the same class overlaps. What is not finite is no answer: pycocotools would take
    a box of NaN for any that is there."""
    from torchvision.ops import batched_nms

    boxes, scores, labels = answers["boxes"].float(), answers["scores"].float(), answers["labels"]
    finite = boxes.isfinite().all(-1) & scores.isfinite()
    boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    which = batched_nms(boxes, scores, labels, OVERLAP)[:KEPT]  # the surest first
    return {"boxes": boxes[which], "scores": scores[which], "labels": labels[which]}


def average_precision(answers: Mapping[str, Tensor], query: Batch, at: float = 0.5) -> float:
    """Mean average precision, a fraction, of the pictures of one task.

    answers: of `Detection.answers`, `[Q, k, ...]`. query: of the same task. Raises UsageError where
    torchmetrics is missing.
    """
    check_torchmetrics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from torchmetrics.detection import MeanAveragePrecision  # pyright: ignore

        metric: Any = MeanAveragePrecision(iou_thresholds=[at], backend="pycocotools")
        # Of more boxes a picture than it likes to see, which are few here.
        metric.warn_on_many_detections = False
    found = boxes_of(query.map(lambda t: t.detach().cpu()).y)
    answers = {name: t.detach().cpu() for name, t in answers.items()}
    told, true = [], []
    for picture in range(len(found.boxes)):
        if query.weight is not None and not query.weight[picture]:
            continue
        here = found.valid[picture] > 0
        labels = found.labels[picture][here]
        true.append({"boxes": found.boxes[picture][here].float() * _SCALE, "labels": labels})
        one = kept({name: t[picture] for name, t in answers.items()})
        told.append({**one, "boxes": one["boxes"] * _SCALE})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(told, true)
        value = float(metric.compute()["map"])
    return max(value, 0.0)  # -1 where no picture shows anything


def judged(values: dict[str, Tensor], query: Batch) -> dict[str, Tensor]:
    """Metrics of one task or T, with `ap50` in the place of its `ANSWERS`, and `box_ap50`, after
    the last step alone: that of the boxes where all classes count as one.

    values: by name `[..., steps]`. query: of the same tasks, with a leading T.
    """
    prefix = len(ANSWERS)
    answers = {n[prefix:]: t for n, t in values.items() if n.startswith(ANSWERS)}
    rest = {n: t for n, t in values.items() if not n.startswith(ANSWERS)}
    if not answers:
        return rest
    if one := rest["loss"].ndim == 1:
        answers = {n: t.unsqueeze(0) for n, t in answers.items()}
    steps = range(rest["loss"].shape[-1])

    def of(task: int, step: int) -> dict[str, Tensor]:
        return {name: t[task, ..., step] for name, t in answers.items()}

    tasks = [_task(query, number) for number in range(len(query.x))]
    found = {
        "ap50": [[average_precision(of(n, s), q) for s in steps] for n, q in enumerate(tasks)],
        "box_ap50": [
            [average_precision(_of_one_class(of(n, -1)), q._replace(y=_of_one_class(q.y)))]
            for n, q in enumerate(tasks)
        ],
    }
    told = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}
    return {**rest, **{name: t[0] if one else t for name, t in told.items()}}


def _of_one_class(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Answers or targets, with every label 0."""
    name = "labels" if "labels" in found else "label"
    return {**found, name: torch.zeros_like(found[name])}


ANSWERS = "answers."
"""How the names of what is judged outside of a task begin."""


def _task(batch: Batch, number: int) -> Batch:
    return batch.map(lambda t: t[number])
