"""MAML: learn a starting point from which a few gradient steps solve a task.

    theta_0 = theta,   theta_{k+1} = theta_k - alpha * grad L_support(theta_k)      (eq. 1)
    min over theta of  sum over tasks of  L_query(theta_K)                           (eq. 2)

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017.
With the strategy `FirstOrder` the same file is FOMAML (section 5.2 there).

With a proximal term the inner loss is  L_support(theta_k) + lambda / 2 * |theta_k - theta|^2,
which has a minimum that the strategy `Implicit` can differentiate: together they are iMAML.
Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, 2019, eq. 3.
"""

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.backbones.heads import head_name
from metalearn.errors import UsageError, check_whole, nearest
from metalearn.functional import PureModule, pure
from metalearn.functional.norms import BatchNorm
from metalearn.inner.protocol import EXACT, OnFeatures, Plain
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Outputs, Params


def kinds_with(proximal: float, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """`kinds`, and "implicit" where there is a proximal term and whatever is exact is defined.

    Raises UsageError for a negative or infinite strength.
    """
    if not 0 <= proximal < math.inf:
        raise UsageError(f"algorithm.proximal={proximal} must be 0 or more, and finite")
    implicit = proximal > 0 and "exact" in kinds and "implicit" not in kinds
    return (*kinds, "implicit") if implicit else kinds


def chosen(weights: Params, adapting: Collection[str] | None) -> Params:
    """Those of `weights` that are named; all of them for None."""
    return weights if adapting is None else {n: w for n, w in weights.items() if n in adapting}


def check_adapting(adapting: Collection[str] | None, weights: Params) -> None:
    """Raise UsageError for a name that is none of `weights`."""
    if unknown := set(adapting or ()) - set(weights):
        name = min(unknown)
        raise UsageError(f"{name} adapts, but is no weight that is learned{nearest(name, weights)}")


def drift(meta: Meta, fast: Params) -> Tensor:
    """|theta_k - theta|^2 over the weights that adapt."""
    init = meta["init"]
    return torch.stack([(w - init[n]).square().sum() for n, w in fast.items() if n in init]).sum()


@dataclass(frozen=True, eq=False)
class MAML:
    """Every weight adapts, or some of them from a start that is learned with the others.

    module: any `nn.Module` from `[B, *X]` to logits `[B, N]` (or values, with another loss).
    steps: K, inner steps. rule: the inner optimizer. loss: of both loops.
    proximal: lambda, 0 or more; above 0 the kind "implicit" is defined too.
    adapting: names of the weights that the inner loop adapts; None for all. The proximal term
        and the rule's learned rates are theirs alone.

    Raises UsageError for a name that is no weight of the network, for none, or for steps that are
    not a whole number.
    """

    module: nn.Module
    steps: int = 5
    rule: InnerRule = sgd(0.1)
    loss: Loss = cross_entropy
    proximal: float = 0.0
    adapting: Collection[str] | None = None
    kinds: tuple[Kind, ...] = EXACT
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))
        object.__setattr__(self, "kinds", kinds_with(self.proximal, self.kinds))
        check_whole("algorithm.steps", self.steps)
        check_adapting(self.adapting, self.net.params)
        if not chosen(self.net.params, self.adapting):
            raise UsageError("no weight of the network adapts; use adaptation=all or head")

    def init(self) -> Meta:
        """The module's own weights and the rule's starting rates."""
        weights = tree.clone(self.net.params)
        return Meta(
            init=weights,
            hyper=self.rule.hyper(chosen(weights, self.adapting), self.steps),
            buffers=tree.clone(self.net.buffers),
        )

    def begin(self, meta: Meta, given: Given) -> Params:
        """theta_0 = theta."""
        return chosen(meta["init"], self.adapting)

    def _outputs(
        self, meta: Meta, fast: Params, x: Inputs, weight: Tensor | None = None
    ) -> Outputs:
        return self.net.apply({**meta["buffers"], **meta["init"], **fast}, x, weight)

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """L_support(theta_k) + lambda / 2 * |theta_k - theta|^2."""
        support = given.support
        loss = self.loss(self._outputs(meta, fast, support.x, support.weight), support)[0]
        return loss + self.proximal / 2 * drift(meta, fast) if self.proximal else loss

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """theta_k, and the support set's statistics where the norm layers ask for them."""
        support = given.support
        weights = {**meta["buffers"], **meta["init"], **fast}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """L_query(theta_K)."""
        return self.loss(self._outputs(meta, fast, query.x, query.weight), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss after the last step alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Outputs:
        """The adapted network's outputs for `x` `[B, *X]`."""
        return self._outputs(meta, fast, x)

    def on_features(self) -> OnFeatures | None:
        """The head and what it is given, where nothing else adapts (ANIL)."""
        if self.adapting is None or type(self) is not MAML:  # a subclass may look at its inputs
            return None
        path = head_name(self.net.module)
        head = self.net.module.get_submodule(path)
        alone = path and all(name.startswith(f"{path}.") for name in self.adapting)
        # A norm layer there may want the support set's statistics, under names of the whole.
        if not alone or any(isinstance(part, BatchNorm) for part in head.modules()):
            return None
        of_head = copy.copy(self)
        object.__setattr__(of_head, "net", self.net.part(path))
        return OnFeatures(path, of_head)

    def plain(self) -> Plain | None:
        """What other packages' engines run; they know no proximal term."""
        if self.proximal:
            return None
        return Plain(self.module, self.loss, self.rule, self.steps, self.adapting)
