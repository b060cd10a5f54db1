"""What a module calls inside its forward pass, replaced where torch is inexact in second order.

`norms.replace_norms` sees torch's own layers only. A layer with a forward of its own (timm's
and torchvision's norms, a user's attention) calls `F.layer_norm` or
`F.scaled_dot_product_attention` itself, and `Exact` takes these calls:

    norms       saved statistics carry no history under `torch.func` (see norm_functions.py)
    attention   the flash and memory-efficient kernels have no double backward
    hardsigmoid no double backward
    embedding   bags have no double backward
    recurrent   nn.LSTM and its like, see recurrent.py
    dropout     and all that is drawn at random, by the seed of `dropout_stream` where there is one
"""

import functools
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from metalearn.errors import UsageError
from metalearn.functional.draws import RULES, UNKNOWN
from metalearn.functional.dropout import current_seed, fold
from metalearn.functional.embedding_bag import embedding_bag
from metalearn.functional.norm_functions import (
    batch_norm,
    instance_norm,
    layer_norm,
    rms_norm,
    weight_norm,
)
from metalearn.functional.recurrent import CELLS, LAYERS
from metalearn.functional.torch_private import AtenOperation, DropoutBase, weight_norm_of_torch


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, softmax(query key^T * scale + mask) value, written out."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
        # A row without any key is 0; softmax would make it, and every gradient, NaN.
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    return weights @ value


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


def _adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """A mean where one position is asked for: torch's own would change the strides of a
    channels-last map in place, which `vmap` does slowly and with a warning."""
    if output_size in (1, (1, 1), [1, 1]):
        return input.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)


def _body(function: Any) -> Callable[..., Any]:
    """A Python function of torch's that does not hand itself over to a mode as a whole, so that
    the mode sees the calls inside it."""
    asked = (f"has_torch_function{end}" for end in ("", "_unary", "_variadic"))
    names = {**function.__globals__, **dict.fromkeys(asked, lambda *_: False)}
    given = function.__name__, function.__defaults__, function.__closure__
    copy = FunctionType(function.__code__, names, *given)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_EXACT: dict[Any, Callable[..., Any]] = {
    torch.batch_norm: batch_norm,
    torch.layer_norm: layer_norm,
    torch.instance_norm: instance_norm,
    torch.rms_norm: rms_norm,
    weight_norm_of_torch: weight_norm,
    F.hardsigmoid: _hardsigmoid,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.embedding_bag: embedding_bag,
    **CELLS,
}
# These call what is intercepted.
_INSIDE: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    **{
        function: _body(function)
        for function in (
            *(F.batch_norm, F.layer_norm, F.instance_norm, F.rms_norm),
            *(F.multi_head_attention_forward, F.gumbel_softmax, F.dropout, F.dropout1d),
            *(F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
        )
    },
}
_TABLES = (_EXACT, _INSIDE, LAYERS, RULES)


@functools.cache
def _named(func: Any) -> Any:
    """Of an operation of `torch.ops.aten` torch's function of that name, where one is known."""
    name = func.__name__.partition(".")[0]
    for home in (torch, Tensor, F):
        known = getattr(home, name, None)
        if known in UNKNOWN or any(known in table for table in _TABLES):
            return known
    return func


class Exact(TorchFunctionMode):
    """Around one forward pass: every call in it is exact in second order, and what it draws at
    random follows from the seed of the `dropout_stream` around it."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, AtenOperation):
            func = _named(func)
        if func in _EXACT:
            return _EXACT[func](*args, **kwargs)
        if func in _INSIDE:
            with self:
                return _INSIDE[func](*args, **kwargs)
        if func in LAYERS:
            return LAYERS[func](self._dropout, *args, **kwargs)
        seed = current_seed()
        if seed is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func in RULES:
            self.draws += 1
            return RULES[func](fold(seed, self.draws), *args, **kwargs)
        if func in UNKNOWN and kwargs.get("training", True):
            name = resolve_name(func)
            raise UsageError(f"{name} cannot repeat what it drew; use dropout, or call its eval()")
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float) -> Tensor:
        with self:
            return F.dropout(x, p)


_INEXACT_OR_RANDOM = (
    *(nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
    *(nn.RMSNorm, nn.Hardsigmoid, nn.RReLU, DropoutBase),
)


def needs_exact(module: nn.Module) -> bool:
    """Whether any part of `module` may call what `Exact` intercepts: all but torch's plain
    layers and ours. A mode costs about a microsecond a call, which a small network feels."""

    def plain(part: nn.Module) -> bool:
        ours = type(part).__module__.startswith(("torch.nn.modules.", "metalearn."))
        return ours and not isinstance(part, _INEXACT_OR_RANDOM)

    return not all(map(plain, module.modules()))
