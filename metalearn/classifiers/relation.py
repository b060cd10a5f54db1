"""Relation networks: a learned comparison of a query's map with each class's.

    r_n = g([c_n, f(x)]),   g: two 3x3 convolutions, the mean over places, two linear layers,
                            a sigmoid                                                 (eq. 1)

with c_n the mean of the maps of class n (a sum in the paper, which depends on the shots), beside
f(x) along the channels. The paper's batch norm is a layer norm here, so that no answer depends on
the queries beside it. Its loss is the squared error of r to the one-hot class (eq. 2), which at
first lowers all relations alike. On glyphs (Adam, 0.001) with width 64 and seed 0 that had shut all
8 hidden units after 20 steps, for good; seeds 1 and 2, or width 16, trained. So did the
cross-entropy of r with seed 0.

Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare: Relation Network for Few-Shot
Learning, 2018.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.classifiers.classes import class_means, maps, masked, widened
from metalearn.classifiers.protocol import drawn, number_of
from metalearn.errors import UsageError
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class Relation:
    """g is meta-learned, and drawn by `seed`.

    channels: of the square map that the backbone has flattened; None for features without places.
    width: channels of g; its linear layers have 8 and 1 outputs.
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    """

    channels: int | None = None
    width: int = 64
    ways: int | None = None
    seed: int = 0
    transductive: bool = field(default=False, init=False)

    def hyper(self, features: int | None = None) -> Params:
        """The weights of g."""
        draw, wide = drawn(self.seed), self.width
        size = 2 * (self.channels or number_of(features, "Relation"))

        def layer(name: str, outputs: int, *inputs: int) -> Params:
            fan_in = torch.Size(inputs).numel()
            weight = draw(outputs, *inputs, bound=(6 / fan_in) ** 0.5)
            return {f"{name}_weight": weight, f"{name}_bias": 0 * weight.flatten(1)[:, 0]}

        new = layer("conv0", wide, size, 3, 3) | layer("conv1", wide, wide, 3, 3)
        for name in ("conv0", "conv1"):
            new[f"{name}_norm"] = torch.ones(wide, dtype=torch.float64)
        return new | layer("linear0", 8, wide) | layer("linear1", 1, 8)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[N, D]` and `counts` `[S]`."""
        prototypes, counts = class_means(support.x, support)
        return {"prototypes": prototypes[: self.ways], "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`: r, 0 to 1."""
        seen, means = (maps(x, self.channels) for x in (features, state["prototypes"]))
        side = round(seen.shape[2] ** 0.5)
        if side * side != seen.shape[2]:
            raise UsageError(f"{seen.shape[2]} places are no square map; correct channels")
        # The first layer is linear: of a mean and of a query apart, and then their sum.
        of_means, of_seen = hyper["conv0_weight"].chunk(2, 1)
        of_means = _convolved(means.unflatten(2, (side, side)), of_means)
        of_seen = _convolved(seen.unflatten(2, (side, side)), of_seen)
        h = (of_means.unsqueeze(0) + of_seen.unsqueeze(1)).flatten(0, 1)
        h = self._layer(hyper, "conv0", h)
        h = self._layer(hyper, "conv1", _convolved(h, hyper["conv1_weight"]))
        h = F.linear(h.mean((2, 3)), hyper["linear0_weight"], hyper["linear0_bias"]).relu()
        r = F.linear(h, hyper["linear1_weight"], hyper["linear1_bias"]).sigmoid()
        counts = state["counts"]
        return masked(widened(r.view(len(features), -1), len(counts)), counts)

    def _layer(self, hyper: Params, name: str, x: Tensor) -> Tensor:
        scale, shift = (hyper[f"{name}_{part}"].view(-1, 1, 1) for part in ("norm", "bias"))
        return (_normalised(x) * scale + shift).relu()


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """`[B, C, side, side]`. Of a single place the kernel's middle alone sees anything."""
    if x.shape[2] == 1:
        return F.linear(x.flatten(1), weight[:, :, 1, 1])[:, :, None, None]
    return F.conv2d(x, weight, padding=1)


def _normalised(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Written out, as torch's own is inexact in second order under vmap."""
    centred = x - x.mean((1, 2, 3), keepdim=True)
    return centred * (centred.square().mean((1, 2, 3), keepdim=True) + eps).rsqrt()
