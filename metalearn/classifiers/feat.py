"""FEAT: prototypes that see one another, through one layer of attention.

    c'_n = norm(c_n + W_o sum over m of softmax over m of <W_q c_n, W_k c_m> / sqrt(D)  W_v c_m)
    logits_n = -|f(x) - c'_n|^2 / temperature                                        (eq. 5 to 7)

with c_n the class means and norm a layer norm. Left out: the paper's dropout, and its second,
contrastive loss on the support set, without which its weights are learned here.

Ye, Hu, Zhan, Sha: Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions, 2020.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import class_means, masked
from metalearn.classifiers.protocol import (
    drawn,
    log_temperature,
    number_of,
    positive,
    temperature,
)  # fmt: skip
from metalearn.functional.norm_functions import layer_norm
from metalearn.functional.overrides import attention
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class FEAT:
    """The attention is meta-learned. W_q, W_k and W_v are drawn by `seed`; W_o starts at 0, so that
    at first a class sees itself alone.

    temperature, learn_temperature: as in `Centroid`; 64 is of the order of D.
    """

    temperature: float = 64.0
    learn_temperature: bool = False
    seed: int = 0
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def hyper(self, features: int | None = None) -> Params:
        """`query`, `key`, `value` and `out` `[D, D]`, `norm_scale` and `norm_shift` `[D]`, and log
        temperature, where it is learned."""
        draw, size = drawn(self.seed), number_of(features, "FEAT")
        weights = {n: draw(size, size, bound=(3 / size) ** 0.5) for n in ("query", "key", "value")}
        zero = torch.zeros(size, size, dtype=torch.float64)
        norm = {"norm_scale": zero[0] + 1, "norm_shift": zero[0].clone()}
        learned = log_temperature(self.temperature, self.learn_temperature)
        return {**weights, "out": zero, **norm, **learned}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]`, those that see one another, and `counts` `[S]`."""
        means, counts = class_means(support.x, support)
        query, key, value = (means @ hyper[n].T for n in ("query", "key", "value"))
        # Of ours, exact in second order under vmap.
        seen = means + attention(query, key, value, counts > 0) @ hyper["out"].T
        prototypes = layer_norm(seen, seen.shape[1:], hyper["norm_scale"], hyper["norm_shift"])
        return {"prototypes": prototypes, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        distances = squared_distances(features, state["prototypes"])
        return masked(-distances / temperature(hyper, self.temperature), state["counts"])
