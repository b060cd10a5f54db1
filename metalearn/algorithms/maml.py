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
from typing import Protocol

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.backbones.heads import head_name
from metalearn.errors import UsageError, check_whole, nearest
from metalearn.functional import PureModule, pure
from metalearn.functional.norms import BatchNorm
from metalearn.inner.protocol import EXACT, OnFeatures, Plain
from metalearn.inner.rules import InnerRule, at_step, sgd
from metalearn.types import META_STEP, Batch, Given, Inputs, Kind, Meta, Metrics, Outputs, Params


def chosen(weights: Params, adapting: Collection[str] | None) -> Params:
    """Those of `weights` that are named; all of them for None."""
    return weights if adapting is None else {n: w for n, w in weights.items() if n in adapting}


def check_adapting(adapting: Collection[str] | None, weights: Params) -> None:
    """Raise UsageError for a name that is none of `weights`."""
    if unknown := set(adapting or ()) - set(weights):
        name = min(unknown)
        raise UsageError(f"{name} adapts, but is no weight that is learned{nearest(name, weights)}")


def annealed(share: Tensor, steps: int) -> Tensor:
    """The weights `[K + 1]` of the query loss after each step: equal but 0 before the first where
    `share`, of the annealing that is done, is 0; the last alone where it is 1 or more.

    Antoniou, Edwards, Storkey: How to train your MAML, 2019, section 4 (MSL).
    """
    each = (1 - share).clamp(min=0) / steps
    last = 1 - each * (steps - 1)
    return torch.cat([each.new_zeros(1), each.expand(steps - 1), last.view(1)])


class Objective(Protocol):
    """What an inner step descends on in the place of the support loss."""

    def hyper(self, algo: "MAML") -> Params:
        """What it learns, at its start."""
        ...

    def __call__(
        self, algo: "MAML", meta: Meta, fast: Params, given: Given, step: int | Tensor
    ) -> Tensor:
        """A scalar; `algo.support_loss` takes the same and is the usual one."""
        ...


@dataclass(frozen=True, eq=False)
class MAML:
    """Every weight adapts, or some of them from a start that is learned with the others.

    module: any `nn.Module` from `[B, *X]` to logits `[B, N]` (or values, with another loss).
    steps: K, inner steps. rule: the inner optimizer. loss: of both loops.
    proximal: lambda, 0 or more; above 0 the kind "implicit" is defined too.
    adapting: names of the weights that the inner loop adapts; None for all. The proximal term
        and the rule's learned rates are theirs alone. A buffer of the network may be among them:
        it adapts from where it stands, and that start is not learned.
    objective: what the inner loop descends on; None for the support loss.
    step_norms, multi_step: as in `MAMLpp`.

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
    objective: Objective | None = None
    step_norms: bool = False
    multi_step: int = 0
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))
        if not 0 <= self.proximal < math.inf:
            raise UsageError(f"algorithm.proximal={self.proximal} must be 0 or more, and finite")
        if self.proximal and "exact" in self.kinds and "implicit" not in self.kinds:
            object.__setattr__(self, "kinds", (*self.kinds, "implicit"))
        check_whole("algorithm.steps", self.steps)
        start = self._start(self.net.params, self.net.buffers)
        check_adapting(self.adapting, {**self.net.params, **start})
        if not start:
            raise UsageError("no weight of the network adapts; use adaptation=all or head")
        if self.multi_step < 0:
            raise UsageError(f"algorithm.multi_step={self.multi_step} must be 0 or more")
        if self.step_norms and not self._norms():
            raise UsageError("step_norms=true needs batch norm; use backbone.norm=transductive")

    def _norms(self) -> list[str]:
        """The weights that have a value of their own for each step: of batch norm."""
        if not self.step_norms:
            return []
        parts = self.net.module.named_modules()
        norms = {f"{path}." if path else "" for path, part in parts if isinstance(part, BatchNorm)}
        return [name for name in self.net.params if name[: name.rfind(".") + 1] in norms]

    def _start(self, init: Params, buffers: Params) -> Params:
        """What adapts, where it starts."""
        if self.adapting is None:
            return {n: w for n, w in init.items() if n not in self._norms()}
        return chosen({**init, **buffers}, set(self.adapting) - set(self._norms()))

    def init(self) -> Meta:
        """The module's own weights, the rule's starting rates, what the objective learns, and
        the norm weights of each step, `[K + 1, C]`."""
        norms, buffers = self._norms(), tree.clone(self.net.buffers)
        weights = {n: w for n, w in tree.clone(self.net.params).items() if n not in norms}
        hyper = self.rule.hyper(self._start(weights, buffers), self.steps)
        if self.objective is not None:
            hyper = {**hyper, **self.objective.hyper(self)}
        each = {n: torch.stack([self.net.params[n]] * (self.steps + 1)) for n in norms}
        if self.multi_step:
            buffers[META_STEP] = next(iter(weights.values())).new_zeros(())
        return Meta(init=weights, hyper={**hyper, **each}, buffers=buffers)

    def begin(self, meta: Meta, given: Given) -> Params:
        """theta_0 = theta."""
        return self._start(meta["init"], meta["buffers"])

    def _at(self, meta: Meta, fast: Params, step: int | Tensor) -> Params:
        """`fast` with the norm weights of inner step `step`."""
        return {**fast, **{n: at_step(meta["hyper"][n], step) for n in self._norms()}}

    def outputs(self, meta: Meta, fast: Params, x: Inputs, weight: Tensor | None = None) -> Outputs:
        """The network's outputs for `x`; `weight` `[B]` marks padding."""
        return self.net.apply({**meta["buffers"], **meta["init"], **fast}, x, weight)

    def support_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """L_support(theta_k) + lambda / 2 * |theta_k - theta|^2."""
        support, weights = given.support, self._at(meta, fast, step)
        loss = self.loss(self.outputs(meta, weights, support.x, support.weight), support)[0]
        if not self.proximal:
            return loss
        moved = [(fast[n] - w).square().sum() for n, w in self.begin(meta, given).items()]
        return loss + self.proximal / 2 * torch.stack(moved).sum()

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """The objective's value; without one, the support loss."""
        if self.objective is not None:
            return self.objective(self, meta, fast, given, step)
        return self.support_loss(meta, fast, given, step)

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """theta_k, and the support set's statistics where the norm layers ask for them."""
        support, fast = given.support, self._at(meta, fast, step)
        weights = {**meta["buffers"], **meta["init"], **fast}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """L_query(theta_K)."""
        return self.loss(self.outputs(meta, fast, query.x, query.weight), query)

    def step_weights(self, meta: Meta) -> Tensor | None:
        """None, the query loss after the last step alone; with `multi_step` see `annealed`."""
        if not self.multi_step or not self.steps:
            return None
        return annealed(meta["buffers"][META_STEP] / self.multi_step, self.steps)

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Outputs:
        """The adapted network's outputs for `x` `[B, *X]`."""
        return self.outputs(meta, fast, x)

    def on_features(self) -> OnFeatures | None:
        """The head and what it is given, where nothing else adapts (ANIL)."""
        # A subclass, or an objective, may look at its inputs.
        special = type(self) is not MAML or self.objective is not None or self.step_norms
        if self.adapting is None or special:
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
        """What other packages' engines run; they know MAML and ANIL alone."""
        special = self.proximal or self.objective or self.step_norms or self.multi_step
        if special or not set(self.adapting or ()) <= set(self.net.params):
            return None
        return Plain(self.module, self.loss, self.rule, self.steps, self.adapting)
