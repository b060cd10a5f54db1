"""Class means that descend on a loss, and the entropies in it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from metalearn import tree
from metalearn.inner.adaptive import adam


def descended(
    loss: Callable[[Tensor], Tensor],
    prototypes: Tensor,
    rate: float,
    steps: int,
    ways: int | None = None,
) -> Tensor:
    """`prototypes` `[S, D]` after `steps` steps of Adam; the first `ways` alone, where that is
    given, move and are what `loss` gets."""
    rule, fast = adam(rate), {"prototypes": prototypes[:ways]}
    state = rule.init(fast)
    for _ in range(steps):
        grads = {"prototypes": grad(loss)(fast["prototypes"])}
        updates, state = rule.update(grads, state, fast, {})
        fast = tree.add(fast, updates)
    return torch.cat([fast["prototypes"], prototypes[len(fast["prototypes"]) :]])


def entropy(p: Tensor, order: float = 1.0) -> Tensor:
    """Of probabilities along the first dimension: Shannon's, or Tsallis's of another order."""
    p = p.clamp(min=torch.finfo(p.dtype).tiny)  # its logarithm has a slope at 0
    if order == 1:
        return -(p * p.log()).sum(0)
    return (1 - p.pow(order).sum(0)) / (order - 1)
