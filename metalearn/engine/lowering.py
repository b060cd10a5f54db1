"""Operations written in the form that a compiler, or `vmap`, makes fast code of.

Inside the contexts here a network's calls of `F.max_pool2d` and `F.conv2d` are replaced by
equal functions, in every order of derivative.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metalearn.functional import conv_batch_norm as stem


def max_pool_2x2(x: Tensor) -> Tensor:
    """`F.max_pool2d(x, 2)` by comparing four values: no indices, which a compiler cannot fuse.

    Of equal values the first is taken, as in torch, so the gradients are the same. A NaN beside
    a number is passed over, which torch would not do: testing for it costs a tenth of a pass.
    """
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    if x.shape[-2:] != (2 * h, 2 * w):
        x = x[..., : 2 * h, : 2 * w]
    # Channels last, as they are in memory where it matters. [*, h, 2, w, 2, C]
    windows = x.movedim(-3, -1).unflatten(-3, (h, 2)).unflatten(-2, (w, 2))
    a, b, c, d = (windows[..., i, :, j, :] for i in (0, 1) for j in (0, 1))
    above, below = a >= b, c >= d
    upper = torch.where(above, a, b) >= torch.where(below, c, d)
    first, second = (torch.where(row, n, n + 1.0) for row, n in ((above, 0.0), (below, 2.0)))
    largest = torch.where(upper, first, second)
    # Masked and summed: the derivative writes each value once, where that of slices adds up four
    # tensors of the size of `x`.
    places = torch.arange(4.0, dtype=largest.dtype, device=x.device).view(2, 1, 2, 1)
    taken = largest.unsqueeze(-3).unsqueeze(-2) == places
    return torch.where(taken, windows, 0.0).sum((-4, -2)).movedim(-1, -3)


def im2col_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Tensor:
    """`F.conv2d` of one group as one matrix product with the unfolded images."""
    kernel = weight.shape[-2:]
    steps, holes, rim = (_pair(v) for v in (stride, dilation, padding))
    columns = F.unfold(x, kernel, holes, rim, steps)
    y = weight.flatten(1) @ columns
    sizes = [
        (x.shape[d - 2] + 2 * rim[d] - holes[d] * (kernel[d] - 1) - 1) // steps[d] + 1
        for d in (0, 1)
    ]
    y = y.unflatten(-1, sizes)
    return y if bias is None else y + bias.view(-1, 1, 1)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def channels_last(t: Tensor) -> Tensor:
    """`t` `[A, B, H, W]` in memory as `[A, H, W, B]`, with those strides even where B is 1 and
    torch would take any for the same: they choose the layout of a convolution's output."""
    strides = channels_last_strides(t)
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def channels_last_strides(t: Tensor) -> tuple[int, int, int, int]:
    """The strides of `t` `[A, B, H, W]` as `[A, H, W, B]`."""
    _, b, h, w = t.shape
    return h * w * b, 1, w * b, b


class _Replaced(TorchFunctionMode):
    """Calls of what `rules` has another function for, which may say NotImplemented."""

    def __init__(self, rules: Mapping[Any, Callable[..., Any]]):
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, rule = kwargs or {}, self.rules.get(func)
        result = NotImplemented if rule is None else rule(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result


def _pooled(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    stride = kernel_size if stride is None or stride == [] else stride
    asked = (_pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation))
    if asked != ((2, 2), (2, 2), (0, 0), (1, 1)) or ceil_mode or return_indices:
        return NotImplemented
    return max_pool_2x2(x)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if groups != 1 or isinstance(padding, str):
        return NotImplemented
    return im2col_conv2d(x, weight, bias, stride, padding, dilation)


@contextmanager
def compiling() -> Iterator[None]:
    """Around the trace of what is to be compiled."""
    # F.max_pool2d hands itself over under both names.
    pooling = dict.fromkeys((torch.max_pool2d, F.max_pool2d), _pooled)
    with stem.watching(), _Replaced({**pooling, torch.conv2d: stem.convolution}):
        yield


@contextmanager
def by_im2col() -> Iterator[None]:
    """Around what is to convolve by matrix products."""
    with _Replaced({torch.conv2d: _convolution}):
        yield
