"""Matching networks: attention over the support examples, each of which votes for its class.

    a_i = softmax over i of  cos(f(x), g(x_i)) / temperature                          (eq. 2)
    p(y = n | x) = sum of a_i over the support examples of class n                    (eq. 1)

with g and f the features, or embeddings that see the whole support set (`full_context.py`).

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, 2016.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers import full_context
from metalearn.classifiers.classes import absent, masked, membership
from metalearn.classifiers.protocol import log_temperature, number_of, positive, temperature
from metalearn.errors import UsageError
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class Matching:
    """temperature, learn_temperature: as in `Centroid`; 1 in the paper.

    full_context: embed by LSTMs over the support set, whose weights are meta-learned and drawn
        by `seed`. steps: of the LSTM of a query, K. Raises UsageError for fewer than 1.
    """

    temperature: float = 1.0
    learn_temperature: bool = False
    full_context: bool = False
    steps: int = 5
    seed: int = 0
    transductive: bool = field(default=False, init=False)
    of_tasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if self.steps < 1:
            raise UsageError(f"steps={self.steps} must be 1 or more")

    def hyper(self, features: int | None = None) -> Params:
        """log temperature, where it is learned, and the weights of the LSTMs, where there are."""
        learned = log_temperature(self.temperature, self.learn_temperature)
        if not self.full_context:
            return learned
        return learned | full_context.weights(number_of(features, "Matching"), self.seed)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`embedded` `[S, D]`, `member` `[S, S]`, the weight of every example in each class,
        `there` `[S]`, 0 for padding, and `counts` `[S]`, the sums of `member`."""
        x, member = support.x, membership(support, support.x.dtype)
        if self.full_context:
            x = full_context.of_support(hyper, x, support.weight)
        there = torch.ones_like(x[..., 0]) if support.weight is None else support.weight.to(x.dtype)
        return {"embedded": x, "member": member, "there": there, "counts": member.sum(-1)}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`: log p but for what all classes share."""
        embedded, member = state["embedded"], state["member"]
        if self.full_context:
            features = full_context.of_queries(
                hyper, features, embedded, state["there"], self.steps
            )
        cosine = unit(embedded) @ unit(features).mT / temperature(hyper, self.temperature)
        # exp of each over the largest of its class, so that none is lost in the sum.
        voters = (member > 0).unsqueeze(-1)
        most = torch.where(voters, cosine.detach().unsqueeze(-3), absent(cosine)).amax(-2)
        above = torch.where(voters.any(-3), cosine - (member > 0).to(cosine.dtype).mT @ most, 0)
        votes = (member @ above.exp()).clamp(min=torch.finfo(cosine.dtype).tiny).log() + most
        return masked(votes.mT, state["counts"])
