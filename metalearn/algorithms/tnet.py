"""T-nets: a learned linear map behind every layer of the body bends the inner loop's steps.

    h_l = sigma(T_l W_l h_{l-1}),   T_l the identity at the start                    (section 4.1)
    W_{k+1} = W_k - alpha * grad_W L_support(W_k, T)
    min over W, T of  sum over tasks of  L_query(W_K, T)

The inner loop leaves T alone, and so moves W h along T T' times the gradient: a learned metric.
The layers are the warp layers of WarpGrad, here learned through the inner loop.

Lee, Choi: Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace, 2018.
Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell: Meta-Learning with Warped Gradient Descent, 2020.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.algorithms.inserted import layers, prepared, put_behind, width
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.backbones.heads import learned
from metalearn.errors import UsageError
from metalearn.inner.rules import InnerRule, sgd


class Warp(nn.Module):
    """A matrix over the channels, the same at every place; the identity at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *]` to the same shape."""
        return F.linear(x.movedim(1, -1), self.weight).movedim(-1, 1)


def TNet(  # a method of the field, named as the others are
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = sgd(0.1),
    loss: Loss = cross_entropy,
    proximal: float = 0.0,
) -> MAML:
    """MAML with warp layers behind the linear and convolutional layers of the body.

    The network's own weights adapt; the maps, `<layer>.warp.weight` `[C, C]`, are learned by the
    outer loop alone. Raises UsageError for a network that is a head alone.
    """
    module = prepared(module)
    own = learned(module)
    body = layers(module)
    if not body:
        raise UsageError("algorithm=tnet bends the layers before the head; use a deeper network")
    for layer in body.values():
        put_behind(layer, "warp", Warp(width(layer)))
    return MAML(module, steps, rule, loss, proximal, own)
