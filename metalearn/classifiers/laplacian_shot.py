"""The nearest class mean, where queries that lie near one another go together.

    a_jn = |z_j - c_n|^2,   w_jl = 1 where l is among the nearest neighbours of j, else 0
    y_j <- softmax over n of  -a_jn + strength * sum over l of w_jl y_ln

from y_j = softmax(-a_j) on, z = f(x) / |f(x)| and c the means that `bd_cspn.rectified` gives.

Ziko, Dolz, Granger, Ben Ayed: Laplacian Regularized Few-Shot Learning, 2020.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.bd_cspn import rectified
from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import class_means, masked
from metalearn.classifiers.protocol import at_least, positive
from metalearn.types import Batch, Params


def nearest(features: Tensor, others: Tensor, there: Tensor, count: int) -> Tensor:
    """`[U, Q]`: 1 for the `count` nearest of `others` `[U, D]` to each of features `[Q, D]`, itself
    left out where it is among them. there: `[U]`, whether it is no padding."""
    info = torch.finfo(features.dtype)
    far, itself = info.max / 4, 64 * info.eps  # as near as rounding tells
    squares = others.detach().square().sum(-1)
    lengths = squares if features is others else features.detach().square().sum(-1)
    squares = (squares + far * (~there).to(squares.dtype)).unsqueeze(-1)
    distances = torch.sub(squares, others.detach() @ features.detach().mT, alpha=2)
    lengths = lengths.unsqueeze(-2)  # which the distances leave out
    # The smallest, the next one, and so on: for the usual 3 much faster than topk.
    distances = torch.add(distances, _not_above(distances, (itself - 1) * lengths), alpha=far)
    last = distances.amin(-2, keepdim=True)
    for _ in range(min(count, others.shape[-2]) - 1):
        further = torch.add(distances, _not_above(distances, last), alpha=far)
        last = further.amin(-2, keepdim=True)
    return _not_above(distances, last.clamp(max=far / 2))


def _not_above(values: Tensor, bound: Tensor) -> Tensor:
    """1 where it is not, else 0."""
    # A fifth of the time of `where` and the like, but `vmap` has no rule for it.
    return (values - bound).le_(0) if values.ndim > 2 else (values <= bound).to(values.dtype)


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
        support = support._replace(x=unit(support.x))
        rest = support.map(lambda t: t.narrow(support.labels.ndim - 1, 0, 0))
        rest = rest if unlabelled is None else unlabelled
        z = unit(rest.x)
        weight = z.new_ones(z.shape[:-1]) if rest.weight is None else rest.weight
        means, counts = class_means(support.x, support)
        if unlabelled is not None and self.scale:
            means, counts, _ = rectified(support, rest._replace(x=z), self.scale)
        state = {"prototypes": means, "counts": counts, "others": rest.x, "there": weight}
        away = masked(-squared_distances(z, means), counts).mT.contiguous()
        if not z.shape[-2]:
            return {**state, "assigned": away, "scores": away}
        near, scores = nearest(z, z, weight > 0, self.neighbours), away
        for _ in range(self.steps):
            assigned = scores.softmax(-2)
            scores = torch.add(away, assigned @ near, alpha=self.strength)
        return {**state, "assigned": assigned, "scores": scores}

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
