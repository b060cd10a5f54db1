"""The members of an ensemble, weighed anew for every task by how well each tells its support set.

    w = softmax over members m of  a_m + b_1 own_m + b_2 other_m
    p(y = n | x) = softmax over n of  sum over m of  w_m cos(f_m(x), c_{m,n}) / t_m

c_{m,n} the mean of the features of unit length of class n by member m; own_m and other_m the mean
over the support set of the cosine to the mean of its own class and to those of the others. a, b
and t are meta-learned, so that the query loss says what a good support set looks like. Each member
alone is Meta-Baseline's classifier; the weights are the gate of a mixture of experts, which sees
the task's support set alone. Jacobs, Jordan, Nowlan, Hinton: Adaptive Mixtures of Local Experts,
1991.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.classes import class_means, cosines, masked, membership, shares
from metalearn.classifiers.protocol import log_of, positive
from metalearn.errors import UsageError
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class MemberWeights:
    """widths: how many of the features are of each member, in their order; None for one member,
    or until `with_members` says so. temperature: where t starts, above 0. slope: where b starts.
    """

    widths: Sequence[int] | None = None
    temperature: float = 0.1
    slope: Sequence[float] = (0.0, -5.0)
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        if len(self.slope) != 2 or (self.widths is not None and min(self.widths, default=0) < 1):
            raise UsageError(
                f"slope={list(self.slope)} must be two numbers, and widths={self.widths} be 1 or "
                "more each"
            )

    def with_members(self, widths: Sequence[int]) -> "MemberWeights":
        """The same for an ensemble of features of these widths; its own, where it was told them."""
        return self if self.widths is not None else replace(self, widths=tuple(widths))

    def hyper(self, features: int | None = None) -> Params:
        """`offset` a `[M]`, `slope` b `[2]`, `log_temperature` `[M]`."""
        count = len(self.widths or (0,))
        return {
            "offset": torch.zeros(count, dtype=torch.float64),
            "slope": torch.tensor(self.slope, dtype=torch.float64),
            "log_temperature": log_of(self.temperature).repeat(count),
        }

    def _each(self, features: Tensor) -> Sequence[Tensor]:
        if self.widths is None:
            return [features]
        if sum(self.widths) != features.shape[-1]:
            raise UsageError(
                f"classifier.widths={list(self.widths)} are not those of {features.shape[-1]} "
                "features; leave them out, for backbone=ensemble tells them"
            )
        return features.split(list(self.widths), -1)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]`, `counts` `[S]` and `log_weights` `[M]`."""
        member = membership(support, support.x.dtype)  # [S, S], a row a class
        own = member > 0
        counts = member.sum(-1)
        there = (counts > 0).unsqueeze(1)
        share = shares(support)
        prototypes, seen = [], []
        for features in self._each(support.x):
            means, _ = class_means(unit(features), support)
            close = cosines(features, means).mT  # a row a class, as `member`
            to_own = torch.where(own, close, 0).sum(0)
            to_others = torch.where(there & ~own, close, 0).sum(0)
            ways = (counts > 0).sum().clamp(min=2).to(close.dtype)
            seen.append(torch.stack([share @ to_own, share @ to_others / (ways - 1)]))
            prototypes.append(means)
        scores = hyper["offset"] + torch.stack(seen) @ hyper["slope"]
        return {
            "prototypes": torch.cat(prototypes, -1),
            "counts": counts,
            "log_weights": scores.log_softmax(0),
        }

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        scale = (state["log_weights"] - hyper["log_temperature"]).exp()
        pairs = zip(self._each(features), self._each(state["prototypes"]), strict=True)
        each = torch.stack([cosines(f, means) for f, means in pairs])
        return masked(torch.einsum("m,mqs->qs", scale, each), state["counts"])
