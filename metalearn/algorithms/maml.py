"""MAML: learn a starting point from which a few gradient steps solve a task.

    theta_0 = theta,   theta_{k+1} = theta_k - alpha * grad L_support(theta_k)      (eq. 1)
    min over theta of  sum over tasks of  L_query(theta_K)                           (eq. 2)

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017.
With the strategy `FirstOrder` the same file is FOMAML (section 5.2 there).

With a proximal term the inner loss is  L_support(theta_k) + lambda / 2 * |theta_k - theta|^2,
which has a minimum that the strategy `Implicit` can differentiate: together they are iMAML.
Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, 2019, eq. 3.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.base import EXACT
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.errors import UsageError
from metalearn.functional import PureModule, pure
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Kind, Meta, Metrics, Params


def kinds_with(proximal: float, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """`kinds`, and "implicit" where there is a proximal term and whatever is exact is defined.

    Raises UsageError for a negative or infinite strength.
    """
    if not 0 <= proximal < math.inf:
        raise UsageError(f"algorithm.proximal={proximal} must be 0 or more, and finite")
    implicit = proximal > 0 and "exact" in kinds and "implicit" not in kinds
    return (*kinds, "implicit") if implicit else kinds


def drift(meta: Meta, fast: Params) -> Tensor:
    """|theta_k - theta|^2 over the weights that adapt."""
    init = meta["init"]
    return torch.stack([(w - init[n]).square().sum() for n, w in fast.items() if n in init]).sum()


@dataclass(frozen=True, eq=False)
class MAML:
    """Every weight adapts.

    module: any `nn.Module` from `[B, *X]` to logits `[B, N]` (or values, with another loss).
    steps: K, inner steps. rule: the inner optimizer. loss: of both loops.
    proximal: lambda, 0 or more; above 0 the kind "implicit" is defined too.
    """

    module: nn.Module
    steps: int = 5
    rule: InnerRule = sgd(0.1)
    loss: Loss = cross_entropy
    proximal: float = 0.0
    kinds: tuple[Kind, ...] = EXACT
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))
        object.__setattr__(self, "kinds", kinds_with(self.proximal, self.kinds))

    def init(self, rng: torch.Generator | None = None) -> Meta:
        """The module's own weights and the rule's starting rates."""
        weights = tree.clone(self.net.params)
        return Meta(
            init=weights,
            hyper=self.rule.hyper(weights, self.steps),
            buffers=tree.clone(self.net.buffers),
        )

    def begin(self, meta: Meta, support: Batch) -> Params:
        """theta_0 = theta."""
        return meta["init"]

    def inner_loss(self, meta: Meta, fast: Params, support: Batch) -> Tensor:
        """L_support(theta_k) + lambda / 2 * |theta_k - theta|^2."""
        outputs = self.net.apply({**meta["buffers"], **fast}, support.x, support.weight)
        loss = self.loss(outputs, support)[0]
        return loss + self.proximal / 2 * drift(meta, fast) if self.proximal else loss

    def finish(self, meta: Meta, fast: Params, support: Batch) -> Params:
        """theta_K, and the support set's statistics where the norm layers ask for them."""
        weights = {**meta["buffers"], **fast}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """L_query(theta_K)."""
        outputs = self.net.apply({**meta["buffers"], **fast}, query.x, query.weight)
        return self.loss(outputs, query)

    def predict(self, meta: Meta, fast: Params, x: Tensor) -> Tensor:
        """The adapted network's outputs for `x` `[B, *X]`."""
        return self.net.apply({**meta["buffers"], **fast}, x)
