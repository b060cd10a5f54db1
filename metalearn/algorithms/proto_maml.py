"""Proto-MAML: MAML with a head that starts, in every task, at the prototypes of its classes.

    c_n = mean of f(x) over the support examples of class n
    w_n = 2 c_n,   b_n = -|c_n|^2                                        (section 3, Proto-MAML)

so that the logits w_n f(x) + b_n before the first step are those of ProtoNet, -|f(x) - c_n|^2,
but for what all classes share. The head then adapts with the body, and the meta-gradient flows
through the prototypes into the start of the body.

Triantafillou et al.: Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few
Examples, 2020.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.maml import check_adapting, chosen
from metalearn.classifiers.classes import class_means, masked
from metalearn.errors import UsageError, check_whole
from metalearn.functional import PureModule, pure
from metalearn.functional.outputs import tensor_of
from metalearn.inner.protocol import EXACT
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Params

WEIGHT, BIAS = "prototypes.weight", "prototypes.bias"


@dataclass(frozen=True, eq=False)
class ProtoMAML:
    """The head adapts from the prototypes, and the body, or a part of it, from its start.

    module: any `nn.Module` from `[B, *X]` to features `[B, D]`.
    steps, rule, loss: as in MAML. adapting: names of the weights of the body that adapt, none
        among them; None for all.

    The head is as wide as a task has classes, so a rate that the rule learns is one for the
    whole of w and one for b. Raises UsageError for a rule that learns matrices.
    """

    module: nn.Module
    steps: int = 5
    rule: InnerRule = sgd(0.1)
    loss: Loss = cross_entropy
    adapting: Collection[str] | None = None
    kinds: tuple[Kind, ...] = EXACT
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)
    of_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "net", pure(self.module))
        check_whole("algorithm.steps", self.steps)
        check_adapting(self.adapting, self.net.params)
        head = {WEIGHT: torch.zeros(2, 3), BIAS: torch.zeros(2)}
        one = {WEIGHT: torch.zeros(1, 1), BIAS: torch.zeros(1)}
        try:
            self.rule.update(head, self.rule.init(head), head, self.rule.hyper(one, self.steps))
        except RuntimeError:
            raise UsageError(
                "the inner rule learns matrices, and a head of prototypes has no fixed size; "
                "use inner=meta_sgd, lslr or sgd"
            ) from None

    def init(self) -> Meta:
        """The module's own weights and the rule's starting rates."""
        weights = tree.clone(self.net.params)
        like = next(iter({**weights, **self.net.buffers}.values()), torch.zeros(()))
        head = {WEIGHT: like.new_zeros(1, 1), BIAS: like.new_zeros(1)}
        hyper = self.rule.hyper({**chosen(weights, self.adapting), **head}, self.steps)
        return Meta(init=weights, hyper=hyper, buffers=tree.clone(self.net.buffers))

    def _features(
        self, meta: Meta, fast: Params, x: Inputs, weight: Tensor | None = None
    ) -> Tensor:
        return tensor_of(self.net.apply(_body(meta, fast), x, weight)).flatten(1)

    def begin(self, meta: Meta, given: Given) -> Params:
        """theta_0, `prototypes.weight` `[S, D]` and `prototypes.bias` `[S]`.

        The bias of a class without examples is the lowest number, and gets no gradient.
        """
        support = given.support
        fast = chosen(meta["init"], self.adapting)
        features = self._features(meta, fast, support.x, support.weight)
        means, counts = class_means(features, support)
        bias = masked(-means.square().sum(1), counts)
        return {**fast, WEIGHT: 2 * means, BIAS: bias}

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """L_support(theta_k, w_k, b_k)."""
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """theta_K, and the support set's statistics where the norm layers ask for them."""
        support = given.support
        weights = _body(meta, fast)
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """L_query(theta_K, w_K, b_K)."""
        features = self._features(meta, fast, query.x, query.weight)
        return self.loss(F.linear(features, fast[WEIGHT], fast[BIAS]), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss at the end alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        """Logits `[B, S]` for `x` `[B, *X]`: one column a class, unused columns lowest."""
        return F.linear(self._features(meta, fast, x), fast[WEIGHT], fast[BIAS])


def _body(meta: Meta, fast: Params) -> Params:
    body = {name: t for name, t in fast.items() if name not in (WEIGHT, BIAS)}
    return {**meta["buffers"], **meta["init"], **body}
