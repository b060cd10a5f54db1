"""Adapters put into a network, each of which at the start changes exactly nothing.

    h = f_W(x) + A * x,   A a 1x1 convolution, 0 at the start     residual adapter, parallel (TSA)
    h = gamma . norm(x) + beta,   1 and 0 at the start             FiLM
    f = M f(x),   the identity at the start                        pre-classifier alignment (URL)

Li, Liu, Bilen: Cross-domain Few-shot Learning with Task-specific Adapters, 2022, section 3.2 (TSA).
Perez, Strub, de Vries, Dumoulin, Courville: FiLM, 2018, eq. 2; few-shot: Shysheya, Bronskill,
Patacchiola, Nowozin, Turner: FiT: Parameter Efficient Few-shot Transfer Learning, 2022, section 3.
Li, Liu, Bilen: Universal Representation Learning from Multiple Domains for Few-shot
Classification, 2021, section 3.3 (URL).
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm, LayerNorm
from metalearn.functional.torch_private import (
    ConvolutionBase,
    NormBase,
    children,
    has_own_convolution,
)


class ResidualAdapter(nn.Module):
    """`base`, which keeps the size of its maps but for its stride, beside a 1x1 convolution."""

    def __init__(self, base: nn.Conv2d):
        super().__init__()
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        stride = cast(Any, base.stride)
        self.base = base
        self.adapter = nn.Conv2d(base.in_channels, base.out_channels, 1, stride, bias=False, **like)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, x: Tensor) -> Tensor:
        """What `base` takes to what `base` gives."""
        return self.base(x) + self.adapter(x)

    @property
    def weight(self) -> Tensor:
        """W with A at its centre, for a network that reads its layer's weight itself."""
        around = [side // 2 for side in reversed(self.base.kernel_size) for _ in range(2)]
        return self.base.weight + F.pad(self.adapter.weight, around)

    @property
    def bias(self) -> Tensor | None:
        """That of `base`."""
        return self.base.bias


class FiLM(nn.Module):
    """`base` with a scale and a shift behind it, of shape `[C]`, or that of a layer norm.

    last: they are of the last dimensions, and not of the channels `[B, C, *]`.
    """

    def __init__(self, base: nn.Module, shape: torch.Size, last: bool):
        super().__init__()
        tensors = [*base.parameters(), *base.buffers()]
        like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
        self.base, self.last = base, last
        self.scale = nn.Parameter(like.new_ones(shape))
        self.shift = nn.Parameter(like.new_zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """What `base` takes to what `base` gives."""
        h = self.base(x)
        shape = self.scale.shape if self.last else (-1, *[1] * (h.ndim - 2))
        return h * self.scale.view(shape) + self.shift.view(shape)

    @property
    def weight(self) -> Tensor:
        """That of a norm that does both, for a network that reads its layer's weight itself."""
        weight = getattr(self.base, "weight", None)
        return self.scale if weight is None else self.scale * weight

    @property
    def bias(self) -> Tensor:
        """As `weight`."""
        bias = getattr(self.base, "bias", None)
        return self.shift if bias is None else self.scale * bias + self.shift

    @property
    def eps(self) -> float:
        """That of `base`."""
        return cast(float, self.base.eps)


class Aligned(nn.Module):
    """A linear map of the features `[..., D]`, and the head behind it."""

    def __init__(self, base: nn.Module, width: int):
        super().__init__()
        like = next(base.parameters())
        self.align = nn.Linear(width, width, bias=False, device=like.device, dtype=like.dtype)
        nn.init.eye_(self.align.weight)
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to logits `[..., N]`."""
        return self.base(self.align(x))


def residual(module: nn.Module, head: str | None) -> nn.Module:
    """`module`, changed in place, with a `ResidualAdapter` at every ungrouped 2d convolution that
    is more than 1x1 and padded to keep the size of its maps. Raises UsageError where none is."""

    def takes(path: str, part: nn.Module) -> bool:
        if not isinstance(part, nn.Conv2d) or part.groups > 1 or max(part.kernel_size) == 1:
            return False
        kind: type[nn.Conv2d] = type(part)
        if kind.forward is not nn.Conv2d.forward or has_own_convolution(kind):
            return False
        padding, kernel = part.padding, part.kernel_size
        full = [d * (k - 1) for d, k in zip(part.dilation, kernel, strict=True)]
        kept = padding == "same" or [2 * p for p in padding if isinstance(p, int)] == full
        return kept and all(side % 2 for side in kernel)

    if not wrap(module, takes, lambda part: ResidualAdapter(cast(nn.Conv2d, part))):
        raise UsageError(
            "adaptation=tsa finds no convolution that keeps the size of its maps; use "
            "adaptation=lora or film"
        )
    return module


def film(module: nn.Module, head: str | None) -> nn.Module:
    """`module`, changed in place, with `FiLM` behind every norm layer; where there are none, behind
    every convolution and linear layer but the head. Raises UsageError where there is neither."""

    def norm(path: str, part: nn.Module) -> bool:
        return is_norm(part) and _shape(part) is not None

    def layer(path: str, part: nn.Module) -> bool:
        return path != head and isinstance(part, ConvolutionBase | nn.Linear)

    def made(part: nn.Module) -> FiLM:
        if isinstance(part, ConvolutionBase):
            return FiLM(part, torch.Size([part.out_channels]), False)
        if isinstance(part, nn.Linear):
            return FiLM(part, torch.Size([part.out_features]), True)
        shape = _shape(part)
        assert shape is not None
        return FiLM(part, shape, _of_last(part))

    if not (wrap(module, norm, made) or wrap(module, layer, made)):
        raise UsageError(
            "adaptation=film finds no norm layer, convolution or linear layer beside the head; use "
            "adaptation=head"
        )
    return module


def align(module: nn.Module, head: str | None) -> nn.Module:
    """`module`, changed in place, with its head `Aligned`; that alone where it is the network.

    Raises UsageError for a network without a head, or one that takes no features.
    """
    if head is None:
        raise UsageError(
            "adaptation=url maps what a head takes, and here are features alone; use algorithm=maml"
        )
    last = module.get_submodule(head)
    weight = getattr(last, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UsageError(
            f"the network ends in {head} ({type(last).__name__}), not a linear layer; use "
            "adaptation=film"
        )
    new = Aligned(last, weight.shape[1])
    if not head:
        return new
    module.set_submodule(head, new)
    return module


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm layer, of any library."""
    # By name: torch's, ours and timm's have no ancestor in common.
    return any("Norm" in kind.__name__ for kind in type(module).__mro__)


def _shape(norm: nn.Module) -> torch.Size | None:
    """Of the scale that a norm layer has, or could have; None where it is not known."""
    weight = getattr(norm, "weight", None)
    if isinstance(weight, Tensor):
        return weight.shape
    if isinstance(norm, LayerNorm):
        return torch.Size(norm.shape)
    if isinstance(norm, NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        for name in ("num_features", "num_channels", "normalized_shape"):
            if (found := getattr(norm, name, None)) is not None:
                return torch.Size([found] if isinstance(found, int) else found)
    averages = getattr(norm, "running_mean", None)
    return averages.shape if isinstance(norm, BatchNorm) and averages is not None else None


def _of_last(norm: nn.Module) -> bool:
    """Whether its scale is of the last dimensions: layer and RMS norms, but those of maps, which
    libraries call ...2d."""
    names = [kind.__name__.lower() for kind in type(norm).__mro__]
    over_last = any("layernorm" in name or "rmsnorm" in name for name in names)
    return over_last and not any(name.endswith("2d") for name in names)


def wrap(
    module: nn.Module,
    takes: Callable[[str, nn.Module], bool],
    make: Callable[[nn.Module], nn.Module],
) -> bool:
    """Put `make(part)` in the place of every part that `takes(path, part)`, in place, outside of
    `nn.MultiheadAttention`, which reads its layers' weights itself; whether there was any. A layer
    at two places stays one."""
    done: dict[nn.Module, nn.Module] = {}
    for parent, name, path in list(_places(module)):
        part = parent.get_submodule(name)
        if takes(path, part):
            if part not in done:
                done[part] = make(part)
            parent.add_module(name, done[part])
    return bool(done)


def _places(module: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, str, str]]:
    """Every (parent, name, path) outside of attention, a layer's second place too."""
    if isinstance(module, nn.MultiheadAttention):
        return
    for name, child in children(module).items():
        if child is not None:
            yield module, name, f"{prefix}{name}"
            yield from _places(child, f"{prefix}{name}.")
