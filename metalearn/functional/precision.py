"""What the numbers of a meta-gradient are computed in.

    fp32      float32 throughout; TF32 off on a CUDA device
    tf32      float32 whose convolutions and matrix products a CUDA device may round to TF32
    bf16      float32 inner steps, query pass of the network in bfloat16: the accurate mixed mode
    bf16-all  inner steps in bfloat16 too
    fp16      both in float16, losses scaled by powers of two, which is undone exactly

Weights, rates, losses and the meta-gradient stay in float32: a mode says what the network
computes in, by casting its weights and inputs on the way in and its outputs on the way out.
Double precision stays double in every mode but those that name a narrower type.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.backends import cudnn

from metalearn.errors import UsageError, nearest

Precision = Literal["fp32", "tf32", "bf16", "bf16-all", "fp16"]


class _Mode(NamedTuple):
    """inner, outer: what the network computes in, None for its own. *_scale: of the loss."""

    inner: torch.dtype | None = None
    outer: torch.dtype | None = None
    inner_scale: float = 1.0
    outer_scale: float = 1.0


_MODES = {
    "fp32": _Mode(),
    "tf32": _Mode(),
    "bf16": _Mode(outer=torch.bfloat16),
    "bf16-all": _Mode(torch.bfloat16, torch.bfloat16),
    # Larger ones overflow: 1024 in the inner loss, 128 in the outer one (measured on a Conv-4).
    "fp16": _Mode(torch.float16, torch.float16, 16.0, 16.0),
}
_mode: ContextVar[_Mode] = ContextVar("metalearn_precision", default=_MODES["fp32"])
_dtype: ContextVar[torch.dtype | None] = ContextVar("metalearn_dtype", default=None)


def check_precision(precision: str) -> None:
    """Raise UsageError for a precision that is unknown."""
    if precision not in _MODES:
        known = ", ".join(get_args(Precision))
        near = nearest(precision, _MODES)
        raise UsageError(f"precision={precision!r} is not known{near}; use {known}")


def slowdown(precision: str, device: torch.device) -> float:
    """How many times as long as in float32 a small matrix product takes in the narrower type of
    `precision`: far above 1 where a processor only emulates that type. Timed, in milliseconds."""
    narrow = _MODES[precision].outer
    if narrow is None or device.type != "cpu":
        return 1.0
    return _product_seconds(narrow) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype, side: int = 128) -> float:
    a = torch.ones(side, side, dtype=dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - started)
    return min(times)


def mode() -> tuple:
    """The mode set around this call, for whoever keeps what depends on it."""
    return _mode.get()


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Inside, `inner_pass` and `outer_pass` are those of `precision`."""
    if device.type == "cpu" and _MODES[precision] == _mode.get():
        return nullcontext()  # a small network's step is short enough to notice
    return _changed(precision, device)


@contextmanager
def _changed(precision: str, device: torch.device) -> Iterator[None]:
    token, matmul = _mode.set(_MODES[precision]), torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        if device.type == "cuda":
            cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
        yield
    finally:
        if device.type == "cuda":
            cudnn.allow_tf32, matmul.allow_tf32 = before
        _mode.reset(token)


@contextmanager
def _pass(dtype: torch.dtype | None, scale: float) -> Iterator[float]:
    token = _dtype.set(dtype)
    try:
        yield scale
    finally:
        _dtype.reset(token)


def inner_pass():
    """Around an inner loss; gives the factor to scale the loss with, and its gradient back."""
    return _pass(_mode.get().inner, _mode.get().inner_scale)


def outer_pass():
    """Around an outer loss; gives the factor to scale the loss with."""
    return _pass(_mode.get().outer, _mode.get().outer_scale)


def outer_scale() -> float:
    """What the meta-gradient of a loss scaled by `outer_pass` has to be divided by."""
    return _mode.get().outer_scale


def narrowed(t: Tensor) -> Tensor:
    """`t` in what the network computes in; integers stay."""
    dtype = _dtype.get()
    return t if dtype is None or not t.is_floating_point() else t.to(dtype)


def widened(t: Tensor, like: Tensor) -> Tensor:
    """An output of the network in the type of `like`, a weight as it was before `narrowed`."""
    return t if _dtype.get() is None else t.to(like.dtype)
