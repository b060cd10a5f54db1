"""What a meta-algorithm is: how one task starts, what it descends on, what it is judged by."""

from typing import Protocol

import torch
from torch import Tensor

from metalearn.functional import PureModule
from metalearn.inner.rules import InnerRule
from metalearn.types import Batch, Kind, Meta, Metrics, Params


class MetaAlgorithm(Protocol):
    """One task, no T. Every method is pure, and differentiable in `meta` and `fast`.

    steps: inner steps in training; 0 for metric methods.
    rule: the inner optimizer; unused where `steps` is 0.
    net: the network made pure; the outer loop moves its running averages.
    kinds: of meta-gradient that the method is defined for, the usual one first.
    """

    @property
    def steps(self) -> int: ...
    @property
    def rule(self) -> InnerRule: ...
    @property
    def net(self) -> PureModule: ...
    @property
    def kinds(self) -> tuple[Kind, ...]: ...

    def init(self, rng: torch.Generator | None = None) -> Meta:
        """Everything meta-learned at its start: the module's own weights, and the rates and
        temperatures. `rng` serves methods that draw something beside the module's weights."""
        ...

    def begin(self, meta: Meta, support: Batch) -> Params:
        """What the inner loop starts from: fast weights, or prototypes."""
        ...

    def inner_loss(self, meta: Meta, fast: Params, support: Batch) -> Tensor:
        """The scalar that the inner loop descends on."""
        ...

    def finish(self, meta: Meta, fast: Params, support: Batch) -> Params:
        """`fast` with whatever else the queries need of the support set, such as its batch
        statistics; `fast` itself where they need nothing."""
        ...

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The scalar that judges the adapted task, and scalar metrics with `loss` among them."""
        ...

    def predict(self, meta: Meta, fast: Params, x: Tensor) -> Tensor:
        """Logits `[B, N]` or values `[B, *Y]` for `x` `[B, *X]`."""
        ...


EXACT: tuple[Kind, ...] = ("exact", "truncated")
"""Strategies that differentiate the outer loss after the inner steps."""
