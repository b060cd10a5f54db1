"""Dropout whose masks are a pure function of a seed.

A meta-gradient may run an inner step twice, and may run tasks one by one or many at once. So a
mask is not drawn from a generator: inside `dropout_stream(seed)` it is a hash of the seed, the
number of the draw within the forward pass and the place of the element, and is the same whenever
these are. Outside of it dropout is torch's own.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_seed: ContextVar[Tensor | None] = ContextVar("metalearn_dropout_seed", default=None)


@contextmanager
def dropout_stream(seed: Tensor) -> Iterator[None]:
    """Let every forward pass of a `PureModule` inside take its dropout masks from `seed`.

    seed: int64 scalar, one a task under `vmap`. Two passes under one seed drop the same; derive
    a seed for each task, meta-step and inner step with `fold`.
    """
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


def current_seed() -> Tensor | None:
    """The seed of the `dropout_stream` around this call."""
    return _seed.get()


_LOW = 2**32 - 1


def _mix(x: Any) -> Any:
    """A bijection of the numbers below 2^32 in which every bit depends on every other, of an int
    or of int64.

    Wellons' lowbias32. No product leaves int64, which has no unsigned arithmetic to rely on.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * (0x846CA68B - 2**32)) & _LOW
    return x ^ (x >> 16)


def _code(number: Any) -> Any:
    """A number as 32 mixed bits. The constant keeps 0 from being mixed to 0."""
    return _mix(_mix((number + 0x9E3779B9) & _LOW) ^ ((number >> 32) & _LOW))


def fold(seed: Tensor, number: int | Tensor) -> Tensor:
    """The seed of part `number` of what `seed` stands for: a task, a step.

    Both int64; scalars, or of shapes that broadcast. The result lies in [0, 2^63).
    """
    high = _mix(((seed >> 32) & _LOW) ^ _code(number))
    low = _mix((seed & _LOW) ^ high)
    return (_mix((high + low) & _LOW) >> 1 << 32) | low


def random_bits(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform integers in [0, 2^32), int64 of `shape`.

    Each is a hash of its coordinates, not of its flat place: what stands at an element stays
    when the tensor is padded to a larger shape.
    """
    bits = fold(seed, 0) & _LOW
    for size in shape:
        bits = _mix(bits.unsqueeze(-1) ^ _code(torch.arange(size, device=seed.device)))
    return bits


def bernoulli(seed: Tensor, probability: float | Tensor, shape: Sequence[int]) -> Tensor:
    """True with `probability`, bool of `shape`."""
    # The high end, because 0 is the start of every other interval: probability 1 is exact.
    return random_bits(seed, shape) < probability * 2**32


def dropped(
    seed: Tensor, x: Tensor, p: float, by_channel: bool = False, alpha: bool = False
) -> Tensor:
    """`x` after dropout with probability `p`, in train mode.

    by_channel: `x` is `[B, C, *]`, and channels drop as a whole. alpha: for SELU networks,
    keeping mean and variance (Klambauer et al. 2017, section 3).
    """
    shape = [*x.shape[:2], *[1] * (x.ndim - 2)] if by_channel else x.shape
    kept = bernoulli(seed.to(x.device), 1 - p, shape).to(x.dtype)
    if not alpha:
        return x * (kept / (1 - p) if p < 1 else kept)
    if p == 1:
        return x * kept
    floor = -1.7580993408473766  # of SELU
    scale = 1 / math.sqrt((1 - p) * (1 + p * floor**2))
    return scale * (x * kept + floor * (1 - kept) - floor * p)
