"""Batch norm after a convolution of the images themselves, without a pass over its output.

The output's moments follow from those of the patches u under the kernel, which no weight
changes: with mean m and covariance C of the patches, `w @ u + b` has the mean `w @ m + b` and the
variance `w @ C @ w`. What the norm returns is then a product of the patches with other weights,
and its derivatives, in every order, are those of a few products. For the 27 numbers of a 3x3 patch
of a colour image C costs less than half of the convolution, and the output, the largest tensor of
a network, is neither read for its moments nor for their gradient.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.functional.torch_private import functorch


class Convolution(NamedTuple):
    """A convolution of images, and where its output came from."""

    y: Tensor
    x: Tensor
    weight: Tensor
    options: tuple[Any, Any, Any]


_seen: ContextVar[dict[int, Convolution] | None] = ContextVar("metalearn_stem", default=None)


@contextmanager
def watching() -> Iterator[None]:
    """Let `seen` know the convolutions of images inside."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """`torch.conv2d`, remembered where its moments can be had for less; else NotImplemented."""
    known = _seen.get()
    small = math.prod(weight.shape[1:]) <= len(weight)
    if known is None or groups != 1 or not small or x.device.type != "cpu" or not _is_data(x):
        return NotImplemented
    y = torch.conv2d(x, weight, bias, stride, padding, dilation)
    known[id(y)] = Convolution(y, x, weight, (stride, padding, dilation))
    return y


def _is_data(x: Tensor) -> bool:
    """Whether no transform around here differentiates by `x`."""
    transforms = functorch()
    while transforms is not None and not x.requires_grad:
        if not transforms.is_functorch_wrapped_tensor(x):
            return True
        x = transforms.get_unwrapped(x)
    return False


def seen(y: Tensor) -> Convolution | None:
    """The convolution of images that `y` is the output of, if it is one."""
    return (_seen.get() or {}).get(id(y))


def normalised(made: Convolution, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`made.y` after batch norm by its own mean and biased variance.

    weight, bias: `[C]`, of the norm. The convolution's bias cancels.
    """
    kernel = made.weight
    wide = torch.promote_types(kernel.dtype, torch.float32)
    patches = centred_patches(made.x.to(wide), kernel.shape, made.options)[0]
    mean, covariance = patch_moments(patches)
    # A variance far below that of the patches is a difference of larger numbers: in float64.
    flat = kernel.flatten(1).double()
    var = ((flat @ covariance) * flat).sum(1).clamp(min=0)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -(flat @ mean) * scale
    if bias is not None:
        shift = shift + bias
    # As a product: its derivative for the weights takes half as long as that of a convolution.
    # Weights in rows of C, or torch would write that derivative as a product that takes longer.
    rows = torch.cat([(flat * scale.unsqueeze(1)).mT, shift.unsqueeze(0)]).to(kernel.dtype)
    y = patches.to(kernel.dtype).flatten(0, 2) @ rows
    return y.unflatten(0, patches.shape[:3]).movedim(-1, 1)


def centred_patches(
    x: Tensor, kernel: torch.Size, options: tuple[Any, Any, Any]
) -> tuple[Tensor, Tensor]:
    """The P = channels * height * width numbers under every place of a kernel
    `[_, channels, height, width]` on images `[B, C, H, W]`, less a centre `[P]`, and then a 1:
    `[B, H', W', P + 1]`. The centre, the second result, is close to their mean, so that a
    variance loses little as a difference of squares.

    options: stride, padding and dilation of the convolution.
    """
    size = math.prod(kernel[1:])
    centre = x.mean((0, 2, 3)).repeat_interleave(size // kernel[1])
    picks = torch.eye(size + 1, size, dtype=x.dtype, device=x.device)
    less = torch.cat([-centre, centre.new_ones(1)])
    return F.conv2d(x, picks.view(-1, *kernel[1:]), less, *options).movedim(1, -1), centre


def patch_moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[P]` and biased covariance `[P, P]`, in float64, of `patches` `[B, H, W, P + 1]`
    over their places; the last number of each is 1."""
    patches = patches.flatten(1, 2)
    products = (patches.mT @ patches).double().sum(0) / (patches.shape[0] * patches.shape[1])
    mean = products[-1, :-1]
    return mean, products[:-1, :-1] - mean.unsqueeze(1) * mean
