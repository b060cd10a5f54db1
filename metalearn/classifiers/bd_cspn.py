"""Class means rectified by the queries: fewer examples missing, and the two sets laid together.

    x_j <- x_j + mean of the support features - mean of the queries'
    w_in = exp(scale * cos(x_i, c_n)),  i in class n: support by its label, queries by prediction
    c_n <- sum over i of w_in x_i / sum over i of w_in

and a query has the class of the smallest angle. The paper takes the most confident queries of each
class; here, as in LaplacianShot's rectification, all count.

Liu, Song, Qin: Prototype Rectification for Few-Shot Learning, 2020.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metalearn.backbones.heads import inverse_root, squared_length, unit
from metalearn.classifiers.classes import class_means, cosines, masked, membership, shares
from metalearn.classifiers.protocol import positive
from metalearn.types import Batch, Params


def rectified(support: Batch, unlabelled: Batch, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The means `[S, D]`, the support examples of each class `[S]`, and the shift `[1, D]` that
    lays the unlabelled features on the support set's; all features are taken at unit length."""
    x, z = unit(support.x), unlabelled.x
    part, squares = shares(unlabelled).unsqueeze(-2), squared_length(z).mT.to(z.dtype)
    length = inverse_root(squares)
    means, counts = class_means(x, support)
    shift = shares(support).unsqueeze(-2) @ x - (part * length) @ z
    # cos(z / |z| + shift, c) from products with z alone: a pass over all features costs the most.
    directions = unit(means)
    along = torch.cat([directions, shift], -2) @ z.mT * length
    lengths = squares * length.square() + 2 * along[..., -1:, :] + squared_length(shift)
    near = (along[..., :-1, :] + directions @ shift.mT) * inverse_root(lengths)
    predicted = masked(near.mT, counts).mT.max(-2, keepdim=True)[1]
    classes = torch.arange(means.shape[-2], device=x.device).unsqueeze(1)
    # Over the largest, so that no scale overflows.
    weights = membership(support, x.dtype) * (scale * (directions @ x.mT - 1)).exp()
    more = ((predicted == classes) & (part > 0)) * (scale * (near - 1)).exp()
    of_more = more.sum(-1, keepdim=True)
    total = (weights.sum(-1, keepdim=True) + of_more).clamp(min=torch.finfo(x.dtype).tiny)
    return (weights @ x + (more * length) @ z + of_more * shift) / total, counts, shift


@dataclass(frozen=True)
class BDCSPN:
    """scale: of the cosine in the weights, above 0. shifted: the queries are classified where they
    were shifted to. temperature: divides the logits, above 0. Raises UsageError."""

    scale: float = 10.0
    shifted: bool = True
    temperature: float = 0.1
    transductive: bool = field(default=True, init=False)
    of_tasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("scale", self.scale)
        positive("temperature", self.temperature)

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]`, `shift` `[1, D]` and `counts` `[S]`, the support examples of each
        class."""
        if unlabelled is None:
            means, counts = class_means(unit(support.x), support)
            shift = torch.zeros_like(means[..., :1, :])
        else:
            means, counts, shift = rectified(support, unlabelled, self.scale)
        return {"prototypes": means, "shift": shift, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        z = unit(features) + state["shift"] if self.shifted else features
        similarity = cosines(z, state["prototypes"])
        return masked(similarity / self.temperature, state["counts"])
