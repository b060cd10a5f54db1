"""DeepBDC: classes by the Brownian distance covariance of their feature maps.

    D_kl = sqrt(e^t |x_k - x_l|^2 + eps)          of the channels x_1 ... x_C of a map, each in R^R
    A = D - row means - column means + mean                                          (eq. 5, 6)
    logits_n = <A(x), P_n>  or  -|A(x) - P_n|^2,   P_n = mean of A over class n        (eq. 10)

The inner product is the paper's for one shot, the distance for more.

Xie, Long, Lv, Wang, Li: Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot
Classification, 2022 (Meta DeepBDC).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.classifiers.classes import class_means, maps, masked
from metalearn.classifiers.protocol import number_of
from metalearn.types import Batch, Params

_EPS = 1e-5


@dataclass(frozen=True)
class DeepBDC:
    """t is meta-learned, and starts at -log(2 R).

    channels: C of the map that the backbone has flattened; None for features without places.
    euclidean: by the distance, and not by the inner product.
    """

    channels: int | None = None
    euclidean: bool = False
    transductive: bool = field(default=False, init=False)

    def hyper(self, features: int | None = None) -> Params:
        """t, as `log_scale`."""
        places = 1
        if self.channels is not None:
            places = max(1, number_of(features, "DeepBDC") // self.channels)
        return {"log_scale": torch.tensor(-math.log(2 * places), dtype=torch.float64)}

    def _distances(self, hyper: Params, features: Tensor) -> Tensor:
        """D `[B, C, C]`."""
        x = maps(features, self.channels) * (hyper["log_scale"] / 2).exp()
        squares = x.square().sum(2)
        apart = (squares.unsqueeze(2) + _EPS) + squares.unsqueeze(1) - 2 * (x @ x.mT)
        return apart.clamp(min=_EPS).sqrt()

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, C * C]` and `counts` `[S]`; the rows from N on are 0."""
        matrices = _centred(self._distances(hyper, support.x)).flatten(1)
        prototypes, counts = class_means(matrices, support)
        return {"prototypes": prototypes, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        d, p = self._distances(hyper, features), state["prototypes"]
        if not self.euclidean:
            # Rows and columns of P have the mean 0, so that those of D have no part.
            return masked(d.flatten(1) @ p.T, state["counts"])
        a = _centred(d).flatten(1)
        logits = 2 * a @ p.T - a.square().sum(1, keepdim=True) - p.square().sum(1)
        return masked(logits, state["counts"])


def _centred(d: Tensor) -> Tensor:
    rows = d.mean(2, keepdim=True)
    return d - rows - rows.mT + rows.mean(1, keepdim=True)
