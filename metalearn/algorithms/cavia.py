"""CAVIA: the network stays; a short context, 0 at the start of every task, adapts and modulates it.

    phi_0 = 0,   phi_{k+1} = phi_k - alpha * grad_phi L_support(theta, phi_k)            (eq. 4)
    h <- (1 + gamma) * h + beta,   [gamma, beta] = W phi + b                   (FiLM, section 3.3)
    min over theta, W, b of  sum over tasks of  L_query(theta, phi_K)                    (eq. 5)

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson: Fast Context Adaptation via Meta-Learning, 2019.
"""

import torch
from torch import Tensor, nn

from metalearn.algorithms.inserted import drawn, layers, prepared, put_behind, width
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.errors import UsageError, nearest
from metalearn.inner.rules import InnerRule, sgd


class Modulation(nn.Module):
    """A scale and a shift of each channel, linear in `context` `[P]`."""

    context: Tensor

    def __init__(self, parameters: int, channels: int):
        super().__init__()
        self.film = drawn(nn.Linear(parameters, 2 * channels))
        self.register_buffer("context", torch.zeros(parameters))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        scale, shift = self.film(self.context).view(2, -1, *[1] * (x.ndim - 2))
        return x * (1 + scale) + shift


def CAVIA(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 2,
    rule: InnerRule = sgd(1.0),
    loss: Loss = cross_entropy,
    context: int = 100,
    layer: str | None = None,
) -> MAML:
    """MAML whose context alone adapts, from 0.

    context: P, how many numbers. layer: whose output is modulated, by its name in the network;
        None for the last one before the head that has weights, a norm layer included.
    Raises UsageError for a context of 0, or a network without such a layer.
    """
    if context < 1:
        raise UsageError(f"algorithm.context={context} must be 1 or more")
    module = prepared(module)
    known = layers(module, norms=True)
    path = next(reversed(known), None) if layer is None else layer
    if path not in known:
        raise UsageError(
            f"algorithm.layer={path} is no layer before the head{nearest(str(path), known)}; "
            f"use {', '.join(known) or 'a deeper network'}"
        )
    put_behind(known[path], "modulation", Modulation(context, width(known[path])))
    return MAML(module, steps, rule, loss, adapting=[f"{path}.modulation.context"])
