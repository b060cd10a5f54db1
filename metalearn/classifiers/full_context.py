"""Embeddings that see the whole support set, of matching networks.

    g(x_i, S) = h_i + h'_i + f(x_i)      h, h' the states of an LSTM along S and of one backwards
    f(x, S) = h_K,   h_k = LSTM(f(x), [h_{k-1}, r_{k-1}], c_{k-1}) + f(x)          (eq. 3, 4)
    r_k = sum over i of softmax over i of <h_k, g(x_i, S)>  g(x_i, S)              (eq. 5, 6)

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, 2016,
section 2.1 and appendix A. g depends on the order of the support set.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.classifiers.protocol import drawn
from metalearn.functional.overrides import attention
from metalearn.types import Params

_INPUTS = {"along": 1, "backwards": 1, "query": 2}  # in D, of what an LSTM is fed back


def weights(features: int, seed: int) -> Params:
    """Those of the three LSTMs at their start, as torch draws an LSTM's."""
    draw, new = drawn(seed), {}
    for name, wide in _INPUTS.items():
        for part, shape in (("input", (features,)), ("hidden", (wide * features,)), ("bias", ())):
            new[f"{name}_{part}"] = draw(4 * features, *shape, bound=features**-0.5)
    return new


def _lstm(hyper: Params, name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    gates = F.linear(x, hyper[f"{name}_input"], hyper[f"{name}_bias"])
    add, keep, new, out = (gates + F.linear(h, hyper[f"{name}_hidden"])).chunk(4, -1)
    c = keep.sigmoid() * c + add.sigmoid() * new.tanh()
    return out.sigmoid() * c.tanh(), c


def of_support(hyper: Params, x: Tensor, weight: Tensor | None) -> Tensor:
    """g of the support features `[..., S, D]`; padding is passed over."""
    size = x.shape[-2]

    def states(name: str, order: Iterable[int]) -> Tensor:
        h = c = torch.zeros_like(x[..., 0, :])
        found: dict[int, Tensor] = {}
        for i in order:
            new_h, new_c = _lstm(hyper, name, x[..., i, :], h, c)
            if weight is not None:
                there = weight[..., i, None] > 0
                new_h, new_c = torch.where(there, new_h, h), torch.where(there, new_c, c)
            found[i] = h = new_h
            c = new_c
        return torch.stack([found[i] for i in range(size)], -2)

    return x + states("along", range(size)) + states("backwards", range(size - 1, -1, -1))


def of_queries(hyper: Params, x: Tensor, support: Tensor, there: Tensor, steps: int) -> Tensor:
    """f of the query features `[..., Q, D]`. support: g `[..., S, D]`. there: `[..., S]`, 0 for
    padding."""
    h = c = r = torch.zeros_like(x)
    for _ in range(steps):
        new, c = _lstm(hyper, "query", x, torch.cat([h, r], -1), c)
        h = new + x
        r = attention(h, support, support, there.unsqueeze(-2) > 0, scale=1.0)
    return h
