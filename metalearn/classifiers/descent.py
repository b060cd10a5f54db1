"""Class means that descend on a loss whose gradient is written out.

    d/ds [CE + a * v H(p) - b * H(m)] = p * (u + v * (h - sum over n of p h)) - hot
    h = b log m - a log p,   of Tsallis's entropies  order / (order - 1) (b m^(order-1) - a p^(...))

with p the softmax over classes of the scores s `[N, B]`, hot `[N, B]` how much an example counts in
the cross-entropy, in the row of its class, u its sums, v `[B]` how much it counts in the entropies,
and m = p v. A third of the work of autograd's, and itself differentiable.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn import tree
from metalearn.inner.adaptive import adam

SHUT = -1e30
"""Added to the scores of a class that is not there: p is 0, and nothing overflows."""


def descended(
    gradient: Callable[[Tensor], Tensor],
    prototypes: Tensor,
    rate: float,
    steps: int,
    ways: int | None = None,
) -> Tensor:
    """`prototypes` `[S, D]` after `steps` steps of Adam; the first `ways` alone, where that is
    given, move and are what `gradient` gets."""
    rule, fast = adam(rate), {"prototypes": prototypes[:ways]}
    state = rule.init(fast)
    for _ in range(steps):
        grads = {"prototypes": gradient(fast["prototypes"])}
        updates, state = rule.update(grads, state, fast, {})
        fast = tree.add(fast, updates)
    return torch.cat([fast["prototypes"], prototypes[len(fast["prototypes"]) :]])


def entropies_slope(
    hot: Tensor, part: Tensor, marginal: float, conditional: float, order: float = 1.0
) -> Callable[[Tensor], Tensor]:
    """From the scores `[N, B]` to the gradient above. order: 1 for Shannon's entropy."""
    of_support, tiny = hot.sum(0), torch.finfo(hot.dtype).tiny

    def slope(scores: Tensor) -> Tensor:
        if order == 1:
            log_p = scores.log_softmax(0)
            p = log_p.exp()
            h = -conditional * log_p
            if marginal:
                log_m = (p @ part).clamp(min=tiny).log()
                h = h + marginal * log_m.unsqueeze(1)
        else:
            p = scores.softmax(0)
            factor = order / (order - 1)
            h = -factor * conditional * power(p)
            if marginal:
                h = h + factor * marginal * power(p @ part).unsqueeze(1)
        return p * (of_support + part * (h - (p * h).sum(0))) - hot

    def power(p: Tensor) -> Tensor:
        # Where it is 0, its derivative must not be infinite.
        return p if order == 2 else p.clamp(min=tiny).pow(order - 1)

    return slope
