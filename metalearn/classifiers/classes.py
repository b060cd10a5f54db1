"""The classes of one task, met without looking at the labels, which `vmap` forbids.

S, the number of support examples, bounds the number of ways N; classes from N on have no
examples, and `masked` keeps them from being predicted. What takes leading dimensions here takes T
tasks at once, whose labels can be seen: there are as many columns as the task of most ways has.
"""

import torch
from torch import Tensor

from metalearn.backbones.heads import inverse_length, unit
from metalearn.errors import UsageError
from metalearn.types import Batch


def absent(like: Tensor) -> float:
    """The logit of a class that is not there: the lowest number of the type of `like`."""
    return torch.finfo(like.dtype).min


def membership(support: Batch, dtype: torch.dtype) -> Tensor:
    """`[S, S]`: row n has the weight of every support example of class n, 0 for the others.
    Of T tasks `[T, N, S]`."""
    labels = support.labels
    columns = size = labels.shape[-1]
    if labels.ndim > 1:
        columns = min(int(labels.max()) + 1, size)
    classes = torch.arange(columns, device=labels.device)
    member = (labels.unsqueeze(-2) == classes.unsqueeze(-1)).to(dtype)
    return member if support.weight is None else member * support.weight.unsqueeze(-2)


def class_means(features: Tensor, support: Batch) -> tuple[Tensor, Tensor]:
    """The mean of the features `[..., S, D]` of each class, and its examples, as in
    `membership`."""
    member = membership(support, features.dtype)
    counts = member.sum(-1)
    return member @ features / counts.clamp(min=1).unsqueeze(-1), counts


def masked(logits: Tensor, counts: Tensor) -> Tensor:
    """`logits` `[..., S]`, lowest for a class without examples; of T tasks `[T, Q, N]`, of counts
    `[T, N]`."""
    counts = counts if counts.ndim == 1 else counts.unsqueeze(-2)
    return torch.where(counts > 0, logits, absent(logits))


def cosines(features: Tensor, means: Tensor) -> Tensor:
    """cos(f, c) of features `[..., Q, D]` and means `[..., S, D]`: `[..., Q, S]`, 0 where one of
    them is 0."""
    # In memory a row a class, as in `centroid.squared_distances`.
    return (unit(means) @ features.mT * inverse_length(features).mT).mT


def cross_entropies(logits: Tensor, hot: Tensor) -> Tensor:
    """-log p_y of each row of logits `[..., B, N]` and one-hot classes `[B, N]`: `[..., B]`; 0 for
    a class that has no column."""
    return -(logits.log_softmax(-1) * hot).sum(-1)


def widened(columns: Tensor, size: int) -> Tensor:
    """`[..., n]` to `[..., size]`, with zeros on the right."""
    missing = size - columns.shape[-1]
    return torch.nn.functional.pad(columns, (0, missing)) if missing else columns


def maps(features: Tensor, channels: int | None) -> Tensor:
    """Features `[B, D]` as the map that the backbone has flattened, `[B, C, R]` with R places;
    without `channels` one place. Raises UsageError where D is not R whole channels."""
    size = features.shape[-1]
    channels = size if channels is None else channels
    if channels < 1 or size % channels:
        raise UsageError(
            f"channels={channels} does not divide the {size} features; give the channels of the "
            "last map, which the backbone has to flatten and not to average"
        )
    return features.unflatten(-1, (channels, size // channels))


def class_systems(
    kernel: Tensor, roots: Tensor, unused: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """E_n = (K + R_n^-2)^-1 `[N, S, S]` of a kernel K `[S, S]` and of diagonals R_n `[N, S]`, which
    may have zeros; and the Cholesky factor of their sum.

    unused: `[S]`, of the examples that are 0 in every R_n; None for none.
    """
    eye, roots = (
        torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device),
        roots.unsqueeze(2),
    )
    lower = torch.linalg.cholesky_ex(eye + roots * kernel * roots.mT)[0]
    half = torch.linalg.solve_triangular(lower, roots * eye, upper=False)
    each = half.mT @ half
    total = each.sum(0)
    if unused is not None:
        total = total + torch.diag_embed(unused.to(total.dtype))
    return each, torch.linalg.cholesky_ex(total)[0]


def shares(batch: Batch) -> Tensor:
    """How much each of the examples counts in their mean, `[..., B]`; 0 for padding."""
    weight = batch.x.new_ones(batch.x.shape[:-1]) if batch.weight is None else batch.weight
    return weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
