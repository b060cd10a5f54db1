"""Conv-4, the four-block network of the few-shot literature."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from metalearn.backbones.norms import NormPolicy, norm2d
from metalearn.errors import UsageError


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, norm, ReLU, halving; then a linear head.

    ways: outputs N of the head; None leaves it out, and the output is the features `[B, D]`.
    channels, size: of the square input images `[B, channels, size, size]`.
    filters: of every block, or of each: 64 (Vinyals et al. 2016), 32 (MAML), [96, 192, 384, 512]
        (R2D2). D = the last one's * (size halved four times) ** 2.
    downsample: "pool" (2x2 max-pooling; Vinyals et al. 2016) or "stride" (stride-2
        convolutions, four times less work; as in MAML's Omniglot network).
    last_map: "flatten", or "mean": its average over places, D = the last one of filters (MAML's
        Omniglot network).
    norm: the norm policy, see `metalearn.backbones.norms`.

    Raises UsageError where nothing would be left of the image.
    """

    def __init__(
        self,
        ways: int | None = 5,
        channels: int = 1,
        filters: int | Sequence[int] = 64,
        size: int = 28,
        downsample: Literal["pool", "stride"] = "pool",
        norm: NormPolicy = "transductive",
        last_map: Literal["flatten", "mean"] = "flatten",
    ):
        super().__init__()
        if last_map not in ("flatten", "mean"):
            raise UsageError(f"last_map={last_map!r} is not known; use flatten or mean")
        if downsample not in ("pool", "stride"):
            raise UsageError(f"downsample={downsample!r} is not known; use pool or stride")
        side = size
        blocks: list[nn.Module] = []
        widths = [filters] * 4 if isinstance(filters, int) else list(filters)
        if len(widths) != 4 or min(widths) < 1:
            raise UsageError(f"filters={filters} must be one number, or 4, of 1 or more")
        for inputs, outputs in pairwise((channels, *widths)):
            stride = 2 if downsample == "stride" else 1
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
            blocks += [conv, norm2d(norm, outputs)]
            if downsample == "pool":
                blocks.append(nn.MaxPool2d(2))
            # After pooling, which it commutes with: the same function, a quarter of the work.
            blocks.append(nn.ReLU())
            side = side // 2 if downsample == "pool" else (side + 1) // 2
        if side < 1:
            raise UsageError(f"images of {size}x{size} are too small for Conv4; use 16x16 or more")
        self.features = nn.Sequential(*blocks)
        self.last_map = last_map
        width = widths[-1] * (side * side if last_map == "flatten" else 1)
        self.head = nn.Identity() if ways is None else nn.Linear(width, ways)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What each of the four blocks makes of `[B, channels, size, size]`: `[B, C, h, w]`."""
        found, each = [], len(self.features) // 4
        for number, layer in enumerate(self.features, 1):
            x = layer(x)
            if number % each == 0:
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, size, size]` to logits `[B, N]`, or to features `[B, D]`."""
        maps = self.features(x)
        return self.head(maps.mean((2, 3)) if self.last_map == "mean" else torch.flatten(maps, 1))
