"""Batch, layer, instance and RMS norm as functions, whose second order is exact under every
transform.

The fused kernels behind `F.batch_norm` and `F.layer_norm` save their statistics without
history, so that a gradient of a gradient under `torch.func.vmap` is silently wrong through
them (functorch issue 534; in float64 the meta-gradient of a Conv-4 is off by 1e-3). The
versions here are written with mean and rsqrt, and have the same parameters, buffers and outputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.functional import conv_batch_norm


class Call(NamedTuple):
    """What one forward pass tells the norm layers inside it, beside the weights.

    weight: of the examples, `[B]`; 0 is padding. record: where the layers put their moments: under
    the layer, or, where a layer of another's calls `torch.batch_norm`, under its running mean.
    """

    weight: Tensor | None = None
    record: dict[nn.Module | Tensor, tuple[Tensor, ...]] | None = None


_PLAIN = Call()
# Not an argument: a forward pass hands nothing on to the layers inside a user's module.
_call: ContextVar[Call] = ContextVar("metalearn_forward", default=_PLAIN)


def current_call() -> Call:
    """What the forward pass around here tells."""
    return _call.get()


def in_forward() -> bool:
    """Whether a forward pass of a network made pure is under way."""
    return _call.get() is not _PLAIN


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Let the norm layers see `call` during one forward pass."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


_fused: ContextVar[bool] = ContextVar("metalearn_fused", default=False)


@contextmanager
def fused_norms() -> Iterator[None]:
    """Let batch and layer norm use torch's fused kernels, which are faster, and exact in every
    order as long as no `vmap` stands around the forward pass."""
    token = _fused.set(True)
    try:
        yield
    finally:
        _fused.reset(token)


def moments(x: Tensor, dims: tuple[int, ...], weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` over `dims` (kept), example b counting `weight[b]` times."""
    if weight is None:
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return mean, var
    weight = weight.to(x.dtype)
    share = (weight / weight.sum()).view(-1, *[1] * (x.ndim - 1))
    others = tuple(d for d in dims if d != 0)

    def average(t: Tensor) -> Tensor:
        t = (t * share).sum(0, keepdim=True)
        return t.mean(others, keepdim=True) if others else t

    mean = average(x)
    return mean, average((x - mean).square())


class Moments(NamedTuple):
    """Of some examples by channel: the mean, the unbiased variance, and of how many values."""

    mean: Tensor
    var: Tensor
    count: Tensor


def running_moments(x: Tensor, weight: Tensor | None) -> Moments:
    """Those of `[B, C, *]`, which is what torch's running averages are made of."""
    mean, var = moments(x, (0, *range(2, x.ndim)), weight)
    examples = x.new_full((), len(x)) if weight is None else weight.sum()
    count = examples * x[0, 0].numel()
    return Moments(mean, var * (count / (count - 1).clamp(min=1)), count)


def pooled(parts: Moments, like: Moments) -> Moments:
    """Those of W sets of examples together, of each set's: `[W, C]`, and counts `[W]`. like: whose
    shapes and types the result has."""
    mean, var, count = parts
    n = count.unsqueeze(1)
    total = count.sum()
    # A set of none may have no moments.
    mean = torch.where(n > 0, mean, 0.0)
    middle = (n * mean).sum(0) / total
    squares = torch.where(n > 1, (n - 1) * var, 0.0) + n * (mean - middle).square()
    found = Moments(middle, squares.sum(0) / (total - 1).clamp(min=1), total)
    return Moments(*(t.view(s.shape).to(s.dtype) for t, s in zip(found, like, strict=True)))


def normalise(x: Tensor, mean: Tensor, var: Tensor, eps: float, weight, bias, shape) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, as one multiplication and one addition."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.view(shape)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.view(shape)
    return x * scale + shift


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.batch_norm` of `[B, C, *]`, which leaves running averages as they are."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    if training or running_mean is None or running_var is None:
        padding = _call.get().weight
        # One row is not a batch of examples: weight standardisation passes a kernel this way.
        weighted = padding is not None and len(input) > 1
        return normalised_by_batch(input, weight, bias, eps, padding if weighted else None)
    call = _call.get()
    if call.record is not None:
        call.record[running_mean] = running_moments(input.detach(), call.weight)
    mean, var = running_mean.detach().view(shape), running_var.detach().view(shape)
    return normalise(input, mean, var, eps, weight, bias, shape)


def normalised_by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, padding: Tensor | None
) -> Tensor:
    """`x` normalised by its own statistics, example b counting `padding[b]` times."""
    if padding is None and (convolved := conv_batch_norm.seen(x)):
        return conv_batch_norm.normalised(convolved, weight, bias, eps)
    # The kernel refuses one value a channel, whose variance is 0.
    if _fused.get() and padding is None and x.numel() > x.shape[1]:
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    mean, var = moments(x, (0, *range(2, x.ndim)), padding)
    return normalise(x, mean, var, eps, weight, bias, (1, -1, *[1] * (x.ndim - 2)))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """`torch.layer_norm`, over the last `len(normalized_shape)` dimensions."""
    if _fused.get():
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    mean, var = moments(input, tuple(range(-len(normalized_shape), 0)), None)
    return normalise(input, mean, var, eps, weight, bias, normalized_shape)


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """`torch.instance_norm` over the positions of `[B, C, *]`."""
    if not use_input_stats:
        return batch_norm(
            input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled
        )
    mean, var = moments(input, tuple(range(2, input.ndim)), None)
    return normalise(input, mean, var, eps, weight, bias, (1, -1, *[1] * (input.ndim - 2)))


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """`torch.rms_norm`, over the last `len(normalized_shape)` dimensions."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    square = input.square().mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
    normal = input * torch.rsqrt(square + eps)
    return normal if weight is None else normal * weight


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the length over all dimensions but `dim`, over all for -1. The kernel behind
    `nn.utils.weight_norm` is wrong in second order (torch 2.15, CPU), and `vmap` has no rule."""
    dims = [d for d in range(v.ndim) if d != dim]
    return v * (g / v.square().sum(dims, keepdim=dim != -1).sqrt())
