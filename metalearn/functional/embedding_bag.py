"""`F.embedding_bag` as a sum of embeddings: torch's own kernel has no double backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Bags `[B, L]`, or one after another `[n]` from `offsets` `[B]` on: `[B, D]`, the sum, mean or
    maximum of each. An empty bag is 0. The gradient is dense.

    Raises UsageError for a `max_norm`, which writes into the weights.
    """
    if max_norm is not None:
        raise UsageError("EmbeddingBag with max_norm changes its weights in its forward; leave it")
    # [..., n, D] and of which bag each is, [B, n]; all of them where every row is a bag.
    found = F.embedding(input, weight)
    real = torch.ones_like(input, dtype=torch.bool) if padding_idx is None else input != padding_idx
    if per_sample_weights is not None:
        found = found * per_sample_weights.unsqueeze(-1)
    if input.ndim == 1:
        if offsets is None:
            raise UsageError("EmbeddingBag takes bags [B, L], or [n] with offsets")
        starts = offsets[:-1] if include_last_offset else offsets
        places = torch.arange(len(input), device=input.device)
        ends = torch.cat([starts[1:], starts.new_tensor([len(input)])])
        if include_last_offset:
            ends = offsets[1:]
        real = real & (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))
    member = real.unsqueeze(-1)
    if mode == "max":
        lowest = torch.where(member, found, -torch.inf)
        return torch.where(member.any(-2), lowest.max(-2)[0], 0)
    total = torch.where(member, found, 0).sum(-2)
    return total if mode == "sum" else total / member.sum(-2).clamp(min=1).to(total.dtype)
