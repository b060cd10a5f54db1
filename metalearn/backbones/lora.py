"""LoRA: a low-rank path beside the layers of a network.

    y = W x + (alpha / r) * B (A x),   A random, B = 0 at the start                     (eq. 3)

Computed as it stands, in two thin layers, so that the gradient for A and B never meets one of
the shape of W. Of a convolution, A is one of the same kernel, stride and padding to r channels,
and B one of 1x1.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language
Models, 2022, section 4.1.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from metalearn.backbones.adapters import wrap
from metalearn.errors import UsageError
from metalearn.functional.torch_private import has_own_convolution


class LowRank(nn.Module):
    """`base` with a path of rank `rank` beside it, which at the start adds exactly nothing."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float):
        super().__init__()
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base, self.scale = base, alpha / rank
        if isinstance(base, nn.Linear):
            self.down: nn.Module = nn.Linear(base.in_features, rank, bias=False, **like)
            self.up: nn.Module = nn.Linear(rank, base.out_features, bias=False, **like)
        else:
            names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            same: dict[str, Any] = {name: getattr(base, name) for name in names}
            self.down = nn.Conv2d(base.in_channels, rank, bias=False, **same, **like)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False, **like)
        nn.init.zeros_(cast(Tensor, self.up.weight))

    def forward(self, x: Tensor) -> Tensor:
        """What `base` takes to what `base` gives."""
        return self.base(x) + self.scale * self.up(self.down(x))

    @property
    def weight(self) -> Tensor:
        """W + (alpha / r) * B A, for a network that reads its layer's weight itself."""
        down, up = cast(Tensor, self.down.weight), cast(Tensor, self.up.weight)
        product = torch.tensordot(up.flatten(1), down, 1)
        return self.base.weight + self.scale * product

    @property
    def bias(self) -> Tensor | None:
        """That of `base`."""
        return self.base.bias


def insert(module: nn.Module, head: str | None, rank: int, alpha: float) -> nn.Module:
    """`module`, changed in place, with a `LowRank` at every linear layer and ungrouped 2d
    convolution but the head.

    Left alone are layers with a forward of their own, and those of `nn.MultiheadAttention`, which
    reads their weights itself. A layer at two places keeps one path for both.

    Raises UsageError where no layer is left.
    """

    def takes(path: str, part: nn.Module) -> bool:
        kind: Any = type(part)
        if isinstance(part, nn.Conv2d):
            plain = kind.forward is nn.Conv2d.forward and not has_own_convolution(kind)
            return path != head and plain and part.groups == 1
        return path != head and kind.forward is nn.Linear.forward

    def path_beside(part: nn.Module) -> LowRank:
        return LowRank(cast(nn.Linear | nn.Conv2d, part), rank, alpha)

    if not wrap(module, takes, path_beside):
        raise UsageError(
            "adaptation=lora finds no linear layer or convolution beside the head; "
            "use adaptation=head"
        )
    return module
