"""Class means moved by a transport of the queries to classes of equal size, on features made even.

    g(x) = (f(x) + 1e-6)^power / |(f(x) + 1e-6)^power|                                      (eq. 1)
    P = argmin over P >= 0, rows sum to 1, columns to Q / N, of
        sum over jn of P_jn |g(x_j) - c_n|^2 - H(P) / strength                             (eq. 3)
    c_n <- c_n + rate * (mean of class n's support features and of the queries by P - c_n)  (eq. 6)

P = softmax over n of  b_n - strength |g(x_j) - c_n|^2, with b by Sinkhorn's iterations. Where the
queries are not of equal classes, P still says that they are.

Hu, Gripon, Pateux: Leveraging the Feature Distribution in Transfer-based Few-Shot Learning, 2021.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import class_means, masked, shares, widened
from metalearn.classifiers.protocol import at_least, positive
from metalearn.types import Batch, Params

_LEAST = 1e-30  # of a share: what is smaller would overflow as a divisor


@dataclass(frozen=True)
class PTMAP:
    """Values as in the paper. sinkhorn: iterations in each step, from where the last one ended.

    unit_length: divide by the length in eq. 1. Features below 0 count as 0.
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    Raises UsageError for a number that is too low.
    """

    power: float = 0.5
    strength: float = 10.0
    rate: float = 0.2
    steps: int = 20
    sinkhorn: int = 10
    unit_length: bool = True
    ways: int | None = None
    transductive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        for name in ("power", "strength", "rate"):
            positive(name, getattr(self, name))
        at_least(0, steps=self.steps)
        at_least(1, sinkhorn=self.sinkhorn)

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]`, `potential` `[S]`, b, and `counts` `[S]`, the support examples of
        each class."""
        size, support = len(support.x), support._replace(x=self._even(support.x))
        means, counts = (t[: self.ways] for t in class_means(support.x, support))
        there = (counts > 0).to(means.dtype)
        scaling, labelled = there, means * counts.unsqueeze(1)  # exp(b)
        if unlabelled is not None:
            z, part = self._even(unlabelled.x), shares(unlabelled)
            number = len(z) if unlabelled.weight is None else unlabelled.weight.sum()
            for step in range(self.steps + 1):
                # A row a class, as fast as it gets; less the smallest, which the sum takes up.
                costs = self.strength * squared_distances(z, means).mT
                costs = torch.where(there.unsqueeze(1) > 0, costs, torch.inf)
                kernel = (costs.amin(0) - costs).exp().clamp(min=_LEAST) * there.unsqueeze(1)
                for _ in range(self.sinkhorn):
                    of_queries = part / (scaling @ kernel)
                    scaling = there / there.sum() / (kernel @ of_queries).clamp(min=_LEAST)
                if step == self.steps:
                    break
                plan = scaling.unsqueeze(1) * kernel
                plan = plan / plan.sum(0) * part * number
                total = (counts + plan.sum(1)).clamp(min=_LEAST).unsqueeze(1)
                means = means + self.rate * ((labelled + plan @ z) / total - means)
        potential = torch.where(there > 0, scaling, 1).log()
        whole = {"prototypes": means.T, "potential": potential, "counts": counts}
        state = {name: widened(t, size) for name, t in whole.items()}
        return {**state, "prototypes": state["prototypes"].T}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`: the logarithms of rows of P but for their sums."""
        costs = self.strength * squared_distances(self._even(features), state["prototypes"])
        return masked(state["potential"] - costs, state["counts"])

    def _even(self, features: Tensor) -> Tensor:
        powers = (features.relu() + 1e-6).pow(self.power)
        return unit(powers) if self.unit_length else powers
