"""Sharp-MAML: both loops descend on the loss at the worst point near by.

    theta_{k+1} = theta_k - alpha * grad L_support(theta_k + e_k)              (section 3, inner)
    e_k = rho * grad L_support(theta_k) / |grad L_support(theta_k)|
    theta <- theta - grad F(theta + E),   E = rho_outer * grad F(theta) / |grad F(theta)|  (outer)

with F the outer loss of the meta-batch and e_k, E held constant where F is differentiated. The
second is the outer loop's, outer.sharpness: any algorithm may have it.

Abbas, Xiao, Chen, Chen, Chen: Sharp-MAML: Sharpness-Aware Model-Agnostic Meta Learning, 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import MAML
from metalearn.errors import UsageError
from metalearn.functional.autodiff import gradient_at
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Given, Meta, Params


@dataclass(frozen=True)
class Sharp:
    """The support loss at theta + e."""

    radius: float

    def hyper(self, algo: MAML) -> Params:
        """Nothing is learned."""
        return {}

    def __call__(
        self, algo: MAML, meta: Meta, fast: Params, given: Given, step: int | Tensor
    ) -> Tensor:
        """L_support(theta + e), e a constant."""
        constant = tree.map_meta(torch.Tensor.detach, meta)
        (grads,) = gradient_at(
            lambda fast: algo.support_loss(constant, fast, given, step), tree.detach(fast)
        )
        squared = torch.stack([g.square().sum() for g in grads.values()]).sum()
        factor = self.radius * torch.rsqrt(squared + 1e-12)
        moved = {name: w + factor * grads[name] for name, w in fast.items()}
        return algo.support_loss(meta, moved, given, step)


def SharpMAML(
    module: nn.Module,
    steps: int = 5,
    rule: InnerRule = sgd(0.1),
    loss: Loss = cross_entropy,
    radius: float = 0.05,
) -> MAML:
    """MAML whose inner steps are sharpness-aware. radius: rho, 0 or more. Raises UsageError."""
    if not radius >= 0:
        raise UsageError(f"algorithm.radius={radius} must be 0 or more")
    return MAML(module, steps, rule, loss, objective=Sharp(radius) if radius else None)
