"""Weights that are pruned: a mask beside each, among the buffers, of 1 and 0.

    f(x; m * theta)

Whatever reads a weight in a forward pass reads it times its mask (`module.PureModule`), so that no
derivative of any order reaches a pruned one; and no inner rule moves it (`inner.loop`). Masks are
tensors like the other buffers: they run under `vmap` and compiled, and are saved with the weights.
"""

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Meta, Params

MASK = "mask of "
"""Before the name of a weight: its mask among the buffers. No weight has such a name."""


def masks_of(tensors: Params) -> Params:
    """The masks among `tensors`, by the names of their weights."""
    return {n.removeprefix(MASK): t for n, t in tensors.items() if n.startswith(MASK)}


def masked(tensors: Params, masks: Params) -> Params:
    """`tensors`, those that have a mask times it."""
    if not masks:
        return tensors
    return {n: t * masks[n].to(t.dtype) if n in masks else t for n, t in tensors.items()}


def applied(weights: Params) -> Params:
    """`weights` as a forward pass reads them: without masks, and times them."""
    masks = masks_of(weights)
    if not masks:
        return weights
    return masked({n: t for n, t in weights.items() if not n.startswith(MASK)}, masks)


def held(meta: Meta) -> None:
    """Set the pruned starting weights of `meta` to 0, in place."""
    with torch.no_grad():
        for name, mask in masks_of(meta["buffers"]).items():
            if name in meta["init"]:
                meta["init"][name].mul_(mask)


def prunable(meta: Meta, head: str | None) -> list[str]:
    """The starting weights that pruning may take: matrices and kernels, those of the head aside.

    head: its path, None for a network without one. Raises UsageError where there are none.
    """
    start = None if not head else f"{head}."
    names = [
        name
        for name, weight in meta["init"].items()
        if weight.ndim > 1 and weight.is_floating_point() and not (start and name.startswith(start))
    ]
    if not names:
        raise UsageError(
            "pruning finds no matrix or kernel that is learned beside the head; use pruning=null"
        )
    return names


def kept_highest(scores: Params, sparsity: float, per_layer: bool = False) -> Params:
    """Masks that take away the lowest of `scores`, a share `sparsity` of all or of each layer.

    As many as round(share * numbers), of equal ones the first; in float64, so that a mask does not
    depend on the device.
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"pruning.sparsity={sparsity} must be 0 or more, and below 1")
    if per_layer:
        return {n: kept_highest({n: s}, sparsity)[n] for n, s in scores.items()}
    flat = torch.cat([score.detach().double().flatten() for score in scores.values()])
    keep = torch.ones_like(flat)
    keep[torch.argsort(flat, stable=True)[: round(sparsity * len(flat))]] = 0
    parts = keep.split([score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape).to(score.dtype)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def sparsity_of(meta: Meta) -> float:
    """The share of the weights with a mask that are pruned; 0 where none has one."""
    masks = list(masks_of(meta["buffers"]).values())
    total = sum(mask.numel() for mask in masks)
    return 1 - float(sum(mask.sum() for mask in masks)) / total if total else 0.0


def with_masks(meta: Meta, masks: Params) -> Meta:
    """`meta` with these masks, its pruned weights 0; the tensors of `init` are new."""
    named = {MASK + name: mask for name, mask in masks.items()}
    init = {n: t.detach() for n, t in masked(meta["init"], masks).items()}
    return Meta(init=init, hyper=meta["hyper"], buffers={**meta["buffers"], **named})


def ones(meta: Meta, names: list[str]) -> Params:
    """Masks that prune nothing."""
    return {name: torch.ones_like(meta["init"][name]) for name in names}


def magnitudes(meta: Meta, names: list[str]) -> dict[str, Tensor]:
    """|theta|."""
    return {name: meta["init"][name].detach().abs() for name in names}
