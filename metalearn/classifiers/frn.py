"""FRN: the class from whose feature maps the query's map is reconstructed best.

    Q_n = rho Q (S_n^T S_n + lambda I)^-1 S_n^T S_n                                    (eq. 5 to 8)
    logits_n = -gamma |Q - Q_n|^2 / R,   lambda = (K_n R / C) e^alpha,   rho = e^beta

with Q `[R, C]` the query's map, a row a place, and S_n `[K_n R, C]` all places of the maps of the
K_n support examples of class n, after both are divided by sqrt(C).

Wertheimer, Tang, Hariharan: Few-Shot Classification with Feature Map Reconstruction Networks, 2021.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.classifiers.classes import maps, masked, membership, widened
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class FRN:
    """alpha, beta and gamma are meta-learned, and start at 0, 0 and 1.

    channels: C of the map that the backbone has flattened; None for features without places.
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    """

    channels: int | None = None
    ways: int | None = None
    transductive: bool = field(default=False, init=False)

    def hyper(self, features: int | None = None) -> Params:
        """`alpha`, `beta` and `gamma`."""
        starts = {"alpha": 0.0, "beta": 0.0, "gamma": 1.0}
        return {name: torch.tensor(t, dtype=torch.float64) for name, t in starts.items()}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`rebuild` `[N, C, C]`, what turns a place into its reconstruction from class n, and
        `counts` `[S]`."""
        x = maps(support.x, self.channels)
        _, size, places = x.shape
        x = x / size**0.5
        member = membership(support, x.dtype)
        counts = member.sum(1)
        member = member[: self.ways]
        moments = (member @ (x @ x.mT).flatten(1)).unflatten(1, (size, size))
        of_class = counts[: self.ways].clamp(min=1) * places / size
        penalty = (hyper["alpha"].exp() * of_class).view(-1, 1, 1)
        eye = torch.eye(size, dtype=x.dtype, device=x.device)
        lower = torch.linalg.cholesky_ex(moments + penalty * eye)[0]
        return {"rebuild": torch.cholesky_solve(moments, lower), "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        x = maps(features, self.channels)
        queries, size, places = x.shape
        x = x.mT.flatten(0, 1) / size**0.5  # a row a place
        rest = x - hyper["beta"].exp() * x @ state["rebuild"]
        apart = rest.square().sum(2).unflatten(1, (queries, places)).mean(2)
        logits = -hyper["gamma"] * apart.T
        return masked(widened(logits, len(state["counts"])), state["counts"])
