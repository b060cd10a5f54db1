"""ResNet-12, the residual network of the few-shot literature."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones.norms import NormPolicy, norm2d
from metalearn.errors import UsageError

SLOPE = 0.1


class DropBlock(nn.Dropout):
    """Drop squares of `side` x `side` positions, a share `p` of each map in the mean.

    Ghiasi, Lin, Le 2018. What is left is scaled up to the example's own share of kept positions.
    """

    def __init__(self, p: float, side: int):
        super().__init__(p)
        self.side = side

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        if not self.training or not self.p:
            return input
        height, width = input.shape[2:]
        side = min(self.side, height, width)
        corners = input.new_ones(*input.shape[:2], height - side + 1, width - side + 1)
        rate = self.p * height * width / (side**2 * corners[0, 0].numel())
        # By dropout, so that the stream of `functional.dropout` reaches it: 1 - rate are zeroed.
        corners = (F.dropout(corners, 1 - rate) > 0).to(input.dtype)
        kept = 1 - F.max_pool2d(F.pad(corners, [side - 1] * 4), side, stride=1)
        share = kept.mean((1, 2, 3), keepdim=True).clamp(min=1 / kept[0].numel())
        return input * (kept / share)


class ThreeConvBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 one, joined, then halved by max-pooling."""

    def __init__(self, inputs: int, outputs: int, norm: NormPolicy, drop: nn.Module):
        super().__init__()

        def conv(fan_in: int, size: int) -> list[nn.Module]:
            bias = norm == "none"
            layer = nn.Conv2d(fan_in, outputs, size, padding=size // 2, bias=bias)
            nn.init.kaiming_normal_(layer.weight, SLOPE, "fan_out", "leaky_relu")
            return [layer, norm2d(norm, outputs)]

        first, second = ([*conv(fan_in, 3), nn.LeakyReLU(SLOPE)] for fan_in in (inputs, outputs))
        self.body = nn.Sequential(*first, *second, *conv(outputs, 3))
        self.shortcut = nn.Sequential(*conv(inputs, 1))
        self.pool = nn.MaxPool2d(2)
        self.activation = nn.LeakyReLU(SLOPE)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H // 2, W // 2]`."""
        # Pooling first commutes with the activation: the same function, a quarter of the work.
        return self.drop(self.activation(self.pool(self.body(x) + self.shortcut(x))))


class ResNet12(nn.Module):
    """Four residual blocks, the mean over places, a linear head.

    ways: outputs N of the head; None leaves it out, and the output is the features `[B, D]`.
    channels, size: of the square input images `[B, channels, size, size]`.
    widths: channels of the blocks; D is the last. (64, 160, 320, 640) is MetaOptNet's (Lee et
        al. 2019), (64, 128, 256, 512) the narrower one of TADAM (Oreshkin et al. 2018).
    drop_rate: of dropout after the first two blocks and of DropBlock after the last two, whose
        squares have the side block_size (5 in MetaOptNet at 84x84, 2 at 32x32).
    norm: the norm policy, see `metalearn.backbones.norms`.
    last_map: "mean", its average over places, or "flatten", for classifiers that look at places;
        D is then the last width times (size halved four times) ** 2.

    Raises UsageError where nothing would be left of the image.
    """

    def __init__(
        self,
        ways: int | None = 5,
        channels: int = 3,
        size: int = 84,
        widths: Sequence[int] = (64, 160, 320, 640),
        drop_rate: float = 0.0,
        block_size: int = 5,
        norm: NormPolicy = "transductive",
        last_map: Literal["mean", "flatten"] = "mean",
    ):
        super().__init__()
        if last_map not in ("mean", "flatten"):
            raise UsageError(f"last_map={last_map!r} is not known; use mean or flatten")
        if len(widths) != 4 or min(widths) < 1:
            raise UsageError(f"widths={list(widths)} must be 4 numbers of 1 or more, one a block")
        if not 0 <= drop_rate < 1 or block_size < 1:
            raise UsageError(
                f"drop_rate={drop_rate} must lie in [0, 1), block_size={block_size} be 1 or more"
            )
        if size < 16:
            raise UsageError(f"images of {size}x{size} are too small for ResNet12; use 16x16")

        def drop(block: int) -> nn.Module:
            if not drop_rate:
                return nn.Identity()
            return nn.Dropout(drop_rate) if block < 2 else DropBlock(drop_rate, block_size)

        pairs = enumerate(pairwise((channels, *widths)))
        blocks = (ThreeConvBlock(*width, norm, drop(block)) for block, width in pairs)
        self.features = nn.Sequential(*blocks)
        self.last_map = last_map
        width = widths[-1] * ((size // 16) ** 2 if last_map == "flatten" else 1)
        self.head = nn.Identity() if ways is None else nn.Linear(width, ways)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What each of the four blocks makes of `[B, channels, size, size]`: `[B, C, h, w]`."""
        found = []
        for block in self.features:
            x = block(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, size, size]` to logits `[B, N]`, or to features `[B, D]`."""
        maps = self.features(x)
        return self.head(maps.flatten(1) if self.last_map == "flatten" else maps.mean((2, 3)))
