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
from metalearn.classifiers.classes import class_means, masked, membership, shares, widened
from metalearn.classifiers.descent import SHUT, descended, entropies_slope
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
        every = torch.cat([x, unit(z)]) / self.temperature
        hot, part = widened(hot, len(every)), torch.cat([0 * x[:, 0], part])
        shut = SHUT * (counts[: self.ways, None] == 0)
        of_scores = entropies_slope(hot, part, 0.0, 1.0)

        def gradient(weight: Tensor) -> Tensor:
            return of_scores(weight @ every.T + shut) @ every

        weight = descended(gradient, unit(means), self.rate, self.steps, self.ways)
        return {"weight": weight, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(unit(features) @ state["weight"].T / self.temperature, state["counts"])
