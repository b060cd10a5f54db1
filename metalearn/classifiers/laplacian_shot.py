"""The nearest class mean, where queries that lie near one another go together.

    a_jn = |z_j - c_n|^2,   w_jl = 1 where l is among the nearest neighbours of j, else 0
    y_j <- softmax over n of  -a_jn + strength * sum over l of w_jl y_ln

from y_j = softmax(-a_j) on, z = f(x) / |f(x)| and c the means that `bd_cspn.rectified` gives.

Ziko, Dolz, Granger, Ben Ayed: Laplacian Regularized Few-Shot Learning, 2020.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.backbones.heads import squared_length, unit
from metalearn.classifiers.bd_cspn import rectified
from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import class_means, masked
from metalearn.classifiers.protocol import at_least, positive
from metalearn.types import Batch, Params

_FAR = 8.0  # above the squared distance of unit vectors, which is 4 at most
_CACHED = 2**18  # numbers of the neighbourhoods that are worked on at a time


def nearest(z: Tensor, others: Tensor, there: Tensor, count: int) -> Tensor:
    """`[U, Q]`: 1 for the `count` nearest of `others` `[U, D]` to each of z `[Q, D]`, all of unit
    length or 0, itself left out where it is among them. there: `[U]`, whether it is no padding."""
    far, itself = 2 * _FAR * (count + 1), 64 * torch.finfo(z.dtype).eps  # as near as rounding tells
    z, others = z.detach(), others.detach()
    rows = squared_length(others) + far * (~there).to(z.dtype).unsqueeze(-1)
    left = (others @ z.mT).mul_(-2).add_(rows).add_((1 - itself) * squared_length(z).mT)
    left = torch.threshold_(left, 0.0, far)
    least = left.amin(-2, keepdim=True).clamp(max=_FAR)
    # The smallest, then that of what is above it, and so on: for the usual 3 faster than topk.
    for _ in range(min(count, others.shape[-2]) - 1):
        left.sub_(least)
        least = F.threshold(left, 0.0, far).amin(-2, keepdim=True).clamp(max=_FAR)
    # A fifth of the time of a comparison's bool, but `vmap` has no rule for it.
    return left.sub_(least).le_(0) if left.ndim > 2 else (left <= least).to(left.dtype)


@dataclass(frozen=True)
class LaplacianShot:
    """neighbours: 1 or more. strength: lambda, above 0; the paper chooses it on validation.

    steps: 1 or more. scale: of the rectification; 0 takes the plain class means. Raises UsageError.
    """

    neighbours: int = 3
    strength: float = 0.7
    steps: int = 20
    scale: float = 1.0
    transductive: bool = field(default=True, init=False)
    of_tasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("strength", self.strength)
        at_least(1, neighbours=self.neighbours, steps=self.steps)
        at_least(0, scale=self.scale)

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]`, `counts` `[S]`; `others` `[U, D]`, the unlabelled, and `there`
        `[U]`, 0 for padding; a row a class what they are taken for, `assigned`, and the `scores`
        that this leads to, `[S, U]`."""
        rest = support.map(lambda t: t.narrow(support.labels.ndim - 1, 0, 0))
        rest = rest if unlabelled is None else unlabelled
        z = unit(rest.x)
        there = z.new_ones(z.shape[:-1]) if rest.weight is None else rest.weight
        if unlabelled is not None and self.scale:
            means, counts, _ = rectified(support, rest, self.scale)
        else:
            means, counts = class_means(unit(support.x), support)
        state = {"prototypes": means, "counts": counts, "others": rest.x, "there": there}
        away = masked(-squared_distances(z, means), counts).mT.contiguous()
        if not z.shape[-2]:
            return {**state, "assigned": away, "scores": away}
        if z.ndim == 2:
            assigned, scores = self._settled(z, there, away)
        else:
            size = max(1, _CACHED // z.shape[-2] ** 2)
            parts = zip(*(t.split(size) for t in (z, there, away)), strict=True)
            found = zip(*(self._settled(*part) for part in parts), strict=True)
            assigned, scores = map(torch.cat, found)
        return {**state, "assigned": assigned, "scores": scores}

    def _settled(self, z: Tensor, there: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
        near, scores, assigned = nearest(z, z, there > 0, self.neighbours), away, away
        for _ in range(self.steps):
            assigned = scores.softmax(-2)
            scores = torch.add(away, assigned @ near, alpha=self.strength)
        return assigned, scores

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`, after one more step."""
        others = state["others"]
        if features is others:  # what it was fitted on
            return state["scores"].mT
        z = unit(features)
        logits = -squared_distances(z, state["prototypes"])
        if others.shape[-2]:
            near = nearest(z, unit(others), state["there"] > 0, self.neighbours)
            logits = logits + self.strength * (state["assigned"] @ near).mT
        return masked(logits, state["counts"])
