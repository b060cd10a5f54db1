"""Random numbers of images, each a hash of the image's seed: the same on every device, whatever
else is in the batch."""

import math

import torch
from torch import Tensor

from metalearn.functional.dropout import fold, random_bits


def uniform(seeds: Tensor, number: int, *shape: int) -> Tensor:
    """Numbers in (0, 1), float64 `[B, *shape]`. seeds: int64 `[B]`. number: of the draw."""
    return (random_bits(fold(seeds, number), shape) + 0.5) / 2.0**32


def between(seeds: Tensor, number: int, low: float, high: float, *shape: int) -> Tensor:
    """Uniform numbers in (low, high), `[B, *shape]`."""
    return low + (high - low) * uniform(seeds, number, *shape)


def normal(seeds: Tensor, number: int, *shape: int) -> Tensor:
    """Standard normal numbers, `[B, *shape]`."""
    return math.sqrt(2) * torch.erfinv(2 * uniform(seeds, number, *shape) - 1)


def poisson(seeds: Tensor, number: int, rate: Tensor) -> Tensor:
    """Poisson numbers of `rate` `[B, *X]`: the smallest k with P(K <= k) >= u, u uniform.

    A quantile of Cornish and Fisher's expansion, moved until it is the right one.
    """
    u = uniform(seeds, number, *rate.shape[1:])
    rate = rate.double()
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    k = (rate + z * rate.sqrt() + (z.square() - 1) / 6).floor().clamp(min=0)
    for _ in range(2):
        k = k + (torch.special.gammaincc(k + 1, rate) < u)
        k = k - ((k > 0) & (torch.special.gammaincc(k.clamp(min=1), rate) >= u)).to(k)
    return torch.where(rate > 0, k, torch.zeros_like(k))
