"""Matrix products in the form that is fastest in compiled code on a processor.

Small ones are sums, which a compiler makes part of other kernels. Large ones in float32 go to
oneDNN in place of MKL on processors that MKL leaves half unused.
"""

import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, library

from metalearn.functional.torch_private import lowering, onednn_linear

SMALL, SMALL_BY_ROWS = 5000, 20_000
"""Multiplications up to which a matrix product is cheaper inside another kernel than as a call, and
where the rows of its second factor lie in memory as one (measured on MLPs of 40 and 64 units)."""

LARGE = 1_000_000
"""Multiplications from which oneDNN, which takes 10 microseconds to start, is ahead of an MKL that
runs at half speed (measured: level at 96 x 96 x 96)."""

_ZEN_5 = 26
"""The family that such a processor tells."""


@functools.cache
def mkl_at_half_speed() -> bool:
    """Whether MKL, by which torch multiplies, takes AVX2 where the processor has AVX-512 of full
    width: it does on AMD's since Zen 5. One core of such an EPYC, 2048 x 2048 in float32: MKL 110
    GFLOP/s, oneDNN 249."""
    there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not there or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)", told, re.MULTILINE)
    return "AuthenticAMD" in told and family is not None and int(family[1]) >= _ZEN_5


@library.custom_op("metalearn::product", mutates_args=())
def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` `[M, K] [K, N] -> [M, N]` by oneDNN, float32 on a CPU; any strides."""
    return onednn_linear(a, b.mT)


@product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@functools.cache
def lower_product() -> None:
    """Tell inductor how to call `product` from C++: its own call of oneDNN wants a second factor
    that is a constant."""
    inductor = lowering()

    class Product(inductor.LinearUnary):
        """Without the copies to contiguous memory that inductor makes for weights it packs."""

        @classmethod
        def require_contiguous(cls, x: Any) -> Any:
            return x

    @inductor.register_lowering(torch.ops.metalearn.product.default, type_promotion_kind=None)
    def lowered(a: Any, b: Any) -> Any:
        second = inductor.permute(b, (1, 0))
        return inductor.TensorBox.create(Product.create(a, second, None, "none", [], ""))


def small_product(a: Tensor, b: Tensor) -> Any:
    """`a @ b` of two or three dimensions as a sum, which a compiler fuses; NotImplemented for
    larger ones."""
    wide = a.dtype in (torch.float32, torch.float64)
    limit = SMALL_BY_ROWS if b.stride(-1) == 1 else SMALL
    if _multiplications(a, b) > limit or a.device.type != "cpu" or not wide:
        return NotImplemented
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def large_product(a: Tensor, b: Tensor) -> Any:
    """`a @ b` of two dimensions by oneDNN where that pays; NotImplemented where it does not."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or _multiplications(a, b) < LARGE:
        return NotImplemented
    if not (mkl_at_half_speed() and torch.backends.mkldnn.enabled):
        return NotImplemented
    if a.stride(0) == 1 and (b.stride(0) == 1 or b.numel() < a.numel()):
        # A first factor that does not lie by rows would be copied.
        return product(b.mT, a.mT).mT.contiguous()
    return product(a, b)


def _multiplications(a: Tensor, b: Tensor) -> int:
    """For one row of the batch."""
    return a.shape[-2] * a.shape[-1] * b.shape[-1]


def _mm(a: Tensor, b: Tensor) -> Any:
    small = small_product(a, b)
    return large_product(a, b) if small is NotImplemented else small


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    found = _mm(a, b) if beta == alpha == 1 else NotImplemented
    return found if found is NotImplemented else found + c


DECOMPOSITIONS = {
    torch.ops.aten.mm.default: _mm,
    torch.ops.aten.bmm.default: small_product,
    torch.ops.aten.addmm.default: _addmm,
}
"""What `make_fx` is to write in place of an operation."""
