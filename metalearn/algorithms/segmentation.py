"""The loss of a segmentation: the class of every pixel, for any meta-algorithm.

    L = mean over pixels of -log p_y

among N classes and the background, of logits that are brought to the size of the mask. Intersection
and union are of all pictures of one task: mean IoU is that over its classes, background left out
(Wang, Liew, Zou, Zhou, Feng: PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment,
2019, section 4.1); foreground-background IoU takes all classes as one, and is the mean over it and
the background.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.algorithms.boxes import check_pictures, labels_of, real
from metalearn.algorithms.losses import mean
from metalearn.backbones.dense import resized
from metalearn.classifiers.classes import absent
from metalearn.errors import UsageError
from metalearn.functional.outputs import tensor_of
from metalearn.types import Batch, Metrics, Outputs, Targets

_NONE = -1  # the class of a pixel without an answer


@dataclass(frozen=True)
class Segmentation:
    """Of outputs `[B, 1 + N, h, w]`, background first, and targets `mask` int64 `[B, H, W]`, 0 for
    the background and n + 1 for class n, with `labels` `[B, M]` and `valid` `[B, M]`, which say
    what a picture shows.

    Metrics loss, miou and fb_iou. Raises UsageError.
    """

    sides = 0

    def __call__(self, outputs: Outputs, batch: Batch, /) -> tuple[Tensor, Metrics]:
        """The scalar loss of one task, and its metrics."""
        mask, logits = _masks_of(batch.y), tensor_of(outputs)
        if logits.ndim != 4:
            raise UsageError(
                f"loss=segmentation takes outputs [B, 1 + N, h, w], not {list(logits.shape)}; use "
                "head=segmentation"
            )
        # The lowest number, of a class that is not there, times a little more than 1 is none.
        low = torch.where(logits.isinf(), logits, logits.clamp(min=absent(logits) / 4))
        logits = resized(low, mask.shape[-2:])
        own = logits.gather(1, mask.unsqueeze(1)).squeeze(1)
        # Prototypes have no background where the support masks take all places.
        there = ~(own <= absent(logits) / 8) | own.isinf()
        log_p = torch.where(there, own - logits.logsumexp(1), 0)
        loss = mean(-log_p.mean((-2, -1)), batch.weight)
        finite = logits.detach().isfinite().all(1)  # else no class is right there
        told = torch.where(finite, logits.detach().argmax(1), _NONE)
        miou, fb_iou = _overlaps(told, mask, logits, batch.weight)
        return loss, {"loss": loss.detach(), "miou": miou, "fb_iou": fb_iou}

    def shares(self, batch: Batch, maps: Tensor, columns: int) -> Tensor:
        """`[B, columns, h, w]`: the share of a place of `maps` `[B, D, h, w]` that is of the
        class."""
        mask = _masks_of(batch.y)
        hot = mask.unsqueeze(-3) == torch.arange(columns, device=maps.device).view(-1, 1, 1)
        hot = hot.to(maps.dtype)
        # The adjoint of the interpolation, as where the maps were brought to the mask's size and
        # averaged under it.
        rows, columns_ = (
            resized(torch.eye(n, dtype=maps.dtype, device=maps.device), (full, n))
            for n, full in zip(maps.shape[-2:], mask.shape[-2:], strict=True)
        )
        return rows.mT @ hot @ columns_

    def check_form(self, y: Targets) -> None:
        """Raise UsageError for targets of another task."""
        _masks_of(y)

    def check(self, algo: Any, support: Batch, query: Batch | None) -> None:
        """Raise UsageError for masks, with a leading T, of wrong classes, or a class that a picture
        shows without a mask."""
        check_pictures(algo, support, query, _masks_of, _check_masks)


def _masks_of(y: Targets) -> Tensor:
    """`[..., B, H, W]`. Raises UsageError for targets without one."""
    if not isinstance(y, dict) or "mask" not in y or not ("labels" in y or "label" in y):
        raise UsageError(
            "loss=segmentation takes targets {mask: [B, H, W], labels: [B, M], valid: [B, M]}; use "
            "task=segmentation and a data set with masks"
        )
    # A mask of one class is 0 and 1 where the picture has a class of its own.
    return y["mask"] if "labels" in y else y["mask"] * (y["label"] + 1)[..., None, None]


def _overlaps(
    told: Tensor, mask: Tensor, logits: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    real = torch.ones_like(mask[:, :1, :1]) if weight is None else (weight > 0).view(-1, 1, 1)
    number = torch.arange(logits.shape[1], device=mask.device).view(-1, 1, 1, 1)

    def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """`[n]`, and which are in the mask, of `[n, B, H, W]`."""
        a, b = a & (real > 0), b & (real > 0)
        both, either = (t.sum((1, 2, 3)).to(logits.dtype) for t in (a & b, a | b))
        return both / either.clamp(min=1), b.any(-1).any(-1).any(-1)

    each, there = iou(told == number[1:], mask == number[1:])
    miou = torch.where(there, each, 0).sum() / there.sum().clamp(min=1)
    sides = iou(torch.stack([told > 0, told == 0]), torch.stack([mask > 0, mask == 0]))[0]
    return miou, sides.mean()


def _check_masks(name: str, batch: Batch) -> None:
    mask = _masks_of(batch.y).cpu()
    if mask.is_floating_point() or mask.ndim != 4:
        raise UsageError(
            f"the masks of the {name} pictures are {mask.dtype} {list(mask.shape[1:])}; give "
            "classes, int64 [B, H, W]"
        )
    labels, valid = labels_of(batch.y)
    labels, there = labels.cpu(), real(batch, valid.cpu())
    for task, (masks, shown, real_) in enumerate(zip(mask, labels, there, strict=True)):
        for number, (one, of, here) in enumerate(zip(masks, shown, real_, strict=True)):
            listed, drawn = set((of[here] + 1).tolist()), set(one.unique().tolist()) - {0}
            if batch.weight is not None and not batch.weight[task, number]:
                continue
            if lost := listed - drawn:
                raise UsageError(
                    f"class {min(lost) - 1} of {name} picture {number} of task {task} has no mask; "
                    "give it one, or leave it out by valid=0"
                )
            if lost := drawn - listed:
                raise UsageError(
                    f"the mask of {name} picture {number} of task {task} has the class "
                    f"{min(lost) - 1}, which its labels lack; correct one of them"
                )
