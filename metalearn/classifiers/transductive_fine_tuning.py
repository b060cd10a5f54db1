"""A linear layer from the class means on that also descends on the entropy of the queries.

    w_n = c_n / |c_n|,   c_n the mean of z(x) over class n,   z(x) = f(x) / |f(x)|
    min over w of  CE(support) + mean over the queries of  H(softmax of w z / temperature)

by Adam. The paper moves the network too; here the features stay as they are.

Dhillon, Chaudhari, Ravichandran, Soatto: A Baseline for Few-Shot Image Classification, 2020.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.classes import absent, class_means, masked, membership, shares
from metalearn.classifiers.descent import descended, entropy
from metalearn.classifiers.protocol import at_least, positive
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class TransductiveFineTuning:
    """steps: 25 in the paper, whose rate of 5e-5 is for a network and hardly moves a head alone.

    temperature: divides the logits, 1 in the paper. The smaller it is, and the greater the rate,
        the sooner all queries end in one class, which nothing here speaks against.
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    Raises UsageError for a number that is too low.
    """

    steps: int = 25
    rate: float = 1e-3
    temperature: float = 1.0
    ways: int | None = None
    transductive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        positive("rate", self.rate)
        positive("temperature", self.temperature)
        at_least(0, steps=self.steps)

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`weight` `[S, D]` and `counts` `[S]`, the support examples of each class."""
        x = unit(support.x)
        means, counts = class_means(x, support)
        hot = membership(support._replace(weight=None), x.dtype)[: self.ways] * shares(support)
        # Without queries the layer descends on the support set alone.
        z, part = (x[:0], x[:0, 0]) if unlabelled is None else (unlabelled.x, shares(unlabelled))
        every, kept = torch.cat([x, unit(z)]).T / self.temperature, counts[: self.ways, None] > 0

        def loss(weight: Tensor) -> Tensor:
            scores = torch.where(kept, weight @ every, absent(x))
            log_p, p = scores[:, : len(x)].log_softmax(0), scores[:, len(x) :].softmax(0)
            return entropy(p) @ part - (log_p * hot).sum()

        weight = descended(loss, unit(means), self.rate, self.steps, self.ways)
        return {"weight": weight, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(unit(features) @ state["weight"].T / self.temperature, state["counts"])
