"""ANIL: almost no inner loop; only the head adapts, the body is learned by the outer loop.

    head_{k+1} = head_k - alpha * grad_head L_support(body, head_k)                  (section 4)
    min over (body, head) of  sum over tasks of  L_query(body, head_K)

Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML, 2020.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.base import EXACT
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import drift, kinds_with
from metalearn.errors import UsageError
from metalearn.functional import PureModule, pure
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Kind, Meta, Metrics, Params


@dataclass(frozen=True, eq=False)
class ANIL:
    """The head adapts.

    module: any `nn.Module` from `[B, *X]` to logits `[B, N]`.
    head: name of the submodule that adapts; by default the one that holds the last weights.
    steps, rule, loss, proximal: as in MAML; the proximal term is over the head alone.
    """

    module: nn.Module
    steps: int = 5
    rule: InnerRule = sgd(0.1)
    loss: Loss = cross_entropy
    head: str | None = None
    proximal: float = 0.0
    kinds: tuple[Kind, ...] = EXACT
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))
        object.__setattr__(self, "kinds", kinds_with(self.proximal, self.kinds))
        if self.head is None:
            object.__setattr__(self, "head", list(self.net.params)[-1].rpartition(".")[0])
        if not self._adapting(self.net.params):
            raise UsageError(
                f"no weights under head={self.head!r}; name a submodule of the network"
            )

    def _adapting(self, weights: Params) -> Params:
        return {n: w for n, w in weights.items() if not self.head or n.startswith(f"{self.head}.")}

    def init(self, rng: torch.Generator | None = None) -> Meta:
        """The module's own weights and the rule's starting rates for the head."""
        weights = tree.clone(self.net.params)
        return Meta(
            init=weights,
            hyper=self.rule.hyper(self._adapting(weights), self.steps),
            buffers=tree.clone(self.net.buffers),
        )

    def begin(self, meta: Meta, support: Batch) -> Params:
        """head_0."""
        return self._adapting(meta["init"])

    def inner_loss(self, meta: Meta, fast: Params, support: Batch) -> Tensor:
        """L_support(body, head_k) + proximal / 2 * |head_k - head|^2."""
        weights = {**meta["buffers"], **meta["init"], **fast}
        loss = self.loss(self.net.apply(weights, support.x, support.weight), support)[0]
        return loss + self.proximal / 2 * drift(meta, fast) if self.proximal else loss

    def finish(self, meta: Meta, fast: Params, support: Batch) -> Params:
        """head_K, and the support set's statistics where the norm layers ask for them."""
        weights = {**meta["buffers"], **meta["init"], **fast}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """L_query(body, head_K)."""
        weights = {**meta["buffers"], **meta["init"], **fast}
        return self.loss(self.net.apply(weights, query.x, query.weight), query)

    def predict(self, meta: Meta, fast: Params, x: Tensor) -> Tensor:
        """The adapted network's outputs for `x` `[B, *X]`."""
        return self.net.apply({**meta["buffers"], **meta["init"], **fast}, x)
