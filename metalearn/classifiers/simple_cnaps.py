"""The classifier of Simple CNAPS: each class has a covariance of its own.

    logits_n = -(f(x) - c_n)^T Q_n^-1 (f(x) - c_n) / 2                               (eq. 2)
    Q_n = k S_n + (1 - k) S + beta I,   k = K_n / (K_n + 1)                          (eq. 3, 4)

with c_n and S_n the mean and covariance of class n (0 for one example), S that of all support
examples, K_n the examples of class n.

Bateni, Goyal, Masrani, Wood, Sigal: Improved Few-Shot Visual Classification, 2020. Their networks
that adapt the features to the task are not part of it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.classifiers.classes import class_means, masked, membership, widened
from metalearn.classifiers.protocol import positive
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class SimpleCNAPS:
    """Nothing is meta-learned.

    beta: above 0, 1 in the paper. ways: N where it is known, the most of all tasks; None takes S
    for it, which costs more.
    """

    beta: float = 1.0
    ways: int | None = None
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def hyper(self, features: int | None = None) -> Params:
        """Nothing."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`means` `[N, D]`, `lower` `[N, D, D]`, the Cholesky factors of Q, and `counts` `[S]`."""
        x = support.x
        means, counts = class_means(x, support)
        means, member = means[: self.ways], membership(support, x.dtype)[: self.ways]
        weight = member.new_ones(len(x)) if support.weight is None else support.weight.to(x.dtype)
        everyone = (weight @ x / weight.sum()).unsqueeze(0)
        of_class = _covariance(x, means, member)
        of_all = _covariance(x, everyone, weight.unsqueeze(0))
        k = (counts / (counts + 1))[: self.ways].view(-1, 1, 1)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        mixed = k * of_class + (1 - k) * of_all + self.beta * eye
        return {"means": means, "lower": torch.linalg.cholesky_ex(mixed)[0], "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        apart = features.T - state["means"].unsqueeze(2)
        half = torch.linalg.solve_triangular(state["lower"], apart, upper=False)
        counts = state["counts"]
        return masked(widened(-half.square().sum(1).T / 2, len(counts)), counts)


def _covariance(x: Tensor, means: Tensor, weight: Tensor) -> Tensor:
    """`[N, D, D]` around `means` `[N, D]` of the examples, weighted by `[N, S]`."""
    apart = x - means.unsqueeze(1)
    total = weight.sum(1)
    share = weight / torch.where(total > 1, total - 1, 1).unsqueeze(1)
    return (apart * share.unsqueeze(2)).mT @ apart
