"""What a forward pass draws at random, as a pure function of a seed.

By torch's function the same distribution from `dropout.random_bits`, so that a forward pass that is
run again draws the same. The functions of `RULES` take the seed of the draw before their own
arguments; what is in `UNKNOWN` cannot be repeated.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.functional.dropout import bernoulli, dropped, fold, random_bits

_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}  # of a fraction below 1


def uniform(seed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """In [0, 1), of `shape`."""
    bits = _BITS.get(dtype, 32)
    return (random_bits(seed, shape) >> (32 - bits)).to(dtype) / 2**bits


def normal(seed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Of mean 0 and variance 1, of `shape`: Box and Muller, 1958."""
    wide = dtype if dtype == torch.float64 else torch.float32
    length, angle = (uniform(fold(seed, n), shape, wide) for n in (1, 2))
    drawn = (-2 * torch.log1p(-length)).sqrt() * (2 * math.pi * angle).cos()
    return drawn.to(dtype)


def _made(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.rand` and `torch.randn`, called with sizes."""

    def made(seed: Tensor, *size: Any, **kwargs: Any) -> Tensor:
        size = kwargs.get("size", size)
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return draw(seed.to(kwargs.get("device") or torch.get_default_device()), shape, dtype)

    return made


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.rand_like` and `torch.randn_like`."""

    def like(seed: Tensor, input: Tensor, **kwargs: Any) -> Tensor:
        seed = seed.to(kwargs.get("device") or input.device)
        return draw(seed, input.shape, kwargs.get("dtype") or input.dtype)

    return like


def _randint(seed: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    *bounds, size = (*args, kwargs["size"]) if "size" in kwargs else args
    low, high = (kwargs.get("low", 0), *bounds)[-2:] if bounds else (kwargs.get("low", 0), None)
    high = kwargs.get("high", high)
    on = seed.to(kwargs.get("device") or torch.get_default_device())
    return (random_bits(on, size) % (high - low) + low).to(kwargs.get("dtype") or torch.int64)


def _randperm(seed: Tensor, n: int, **kwargs: Any) -> Tensor:
    on = seed.to(kwargs.get("device") or torch.get_default_device())
    return random_bits(on, (n,)).argsort().to(kwargs.get("dtype") or torch.int64)


def _normal(seed: Tensor, mean: Any, std: Any = 1.0, size: Any = None, **kwargs: Any) -> Tensor:
    like = next((t for t in (mean, std) if isinstance(t, Tensor)), None)
    if like is None:
        return mean + std * _made(normal)(seed, size, **kwargs)
    both = torch.broadcast_shapes(*(t.shape for t in (mean, std) if isinstance(t, Tensor)))
    return mean + std * normal(seed.to(like.device), both, like.dtype)


def _bernoulli(seed: Tensor, input: Tensor, p: float | None = None, **kwargs: Any) -> Tensor:
    chance = input if p is None else p
    return bernoulli(seed.to(input.device), chance, input.shape).to(input.dtype)


def _filled(input: Tensor, drawn: Tensor) -> Tensor:
    """`drawn`, which an operation in place leaves in `input`, as stochastic depth uses it:
    `noise = torch.empty(...).bernoulli_(p)`."""
    try:
        input.copy_(drawn)
    except RuntimeError:
        # Made without a task dimension, under vmap: only the result has one draw a task, and
        # whoever goes on to read `input` is to find out.
        input.fill_(torch.nan)
    return drawn


def _bernoulli_(seed: Tensor, input: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return _filled(input, bernoulli(seed.to(input.device), p, input.shape).to(input.dtype))


def _uniform_(seed: Tensor, input: Tensor, low: float = 0.0, high: float = 1.0, **bounds) -> Tensor:
    low, high = bounds.get("from", low), bounds.get("to", high)
    drawn = uniform(seed.to(input.device), input.shape, input.dtype)
    return _filled(input, low + (high - low) * drawn)


def _normal_(seed: Tensor, input: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return _filled(input, mean + std * normal(seed.to(input.device), input.shape, input.dtype))


def _exponential_(seed: Tensor, input: Tensor, lambd: float = 1.0) -> Tensor:
    drawn = uniform(seed.to(input.device), input.shape, input.dtype)
    return _filled(input, -torch.log1p(-drawn) / lambd)


def _dropping(by_channel: bool, alpha: bool) -> Callable[..., Tensor]:
    """In place is only to save memory: a new tensor does as well, and an activation without a task
    dimension could not take a mask that has one."""

    def dropping(seed: Tensor, input: Tensor, p: float, train: bool) -> Tensor:
        if not train or p == 0:
            return input
        return dropped(seed, input, p, by_channel, alpha)

    return dropping


def _native_dropout(
    seed: Tensor, input: Tensor, p: float, train: bool | None = True
) -> tuple[Tensor, Tensor]:
    if train is False:
        return input, torch.ones_like(input, dtype=torch.bool)
    kept = dropped(seed, torch.ones_like(input), p)
    return input * kept, kept != 0


RULES: dict[Any, Callable[..., Any]] = {
    torch.dropout: _dropping(False, False),
    torch.dropout_: _dropping(False, False),
    torch.feature_dropout: _dropping(True, False),
    torch.feature_dropout_: _dropping(True, False),
    torch.alpha_dropout: _dropping(False, True),
    torch.alpha_dropout_: _dropping(False, True),
    torch.feature_alpha_dropout: _dropping(True, True),
    torch.feature_alpha_dropout_: _dropping(True, True),
    torch.native_dropout: _native_dropout,
    torch.rand: _made(uniform),
    torch.randn: _made(normal),
    torch.rand_like: _like(uniform),
    torch.randn_like: _like(normal),
    torch.randint: _randint,
    torch.randperm: _randperm,
    torch.normal: _normal,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
    Tensor.exponential_: _exponential_,
}
UNKNOWN = {
    *(torch.multinomial, torch.randint_like, torch.poisson, F.rrelu),
    *(Tensor.multinomial, Tensor.random_, Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_),
    *(F.fractional_max_pool2d_with_indices, F.fractional_max_pool3d_with_indices),
}
