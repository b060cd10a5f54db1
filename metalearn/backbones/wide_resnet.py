"""Wide residual networks, WRN-28-10 of the few-shot literature among them."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones.norms import NormPolicy, norm2d
from metalearn.errors import UsageError


class WideBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, beside the input (through a 1x1 convolution of the
    first activation where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float, norm: NormPolicy):
        super().__init__()
        self.bn1 = norm2d(norm, inputs)
        self.conv1 = _convolution(inputs, outputs, 3, stride, norm)
        self.bn2 = norm2d(norm, outputs)
        self.conv2 = _convolution(outputs, outputs, 3, 1, norm)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else _convolution(inputs, outputs, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        first = F.relu(self.bn1(x))
        h = self.drop(F.relu(self.bn2(self.conv1(first))))
        return self.conv2(h) + (x if self.shortcut is None else self.shortcut(first))


class WideResNet(nn.Module):
    """WRN-depth-width: 16 channels, then three stages of 16, 32 and 64 times `width`, the last two
    halving the image, then norm, ReLU and the mean over positions.

    ways: outputs N of the head; None leaves it out, and the output is the features `[B, D]`,
        D = 64 * width.
    channels, size: of the square input images `[B, channels, size, size]`.
    depth: 6n + 4. drop_rate: of dropout between the two convolutions of a block.
    norm: the norm policy, see `metalearn.backbones.norms`.

    Raises UsageError for a depth, width or rate that cannot be.

    Zagoruyko, Komodakis: Wide Residual Networks, 2016, table 1.
    """

    def __init__(
        self,
        ways: int | None = 5,
        channels: int = 3,
        size: int = 32,
        depth: int = 28,
        width: int = 10,
        drop_rate: float = 0.0,
        norm: NormPolicy = "transductive",
    ):
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise UsageError(f"depth={depth} must be 6n + 4; use 16, 22 or 28")
        if width < 1 or not 0 <= drop_rate < 1:
            raise UsageError(f"width={width} must be 1 or more, drop_rate={drop_rate} in [0, 1)")
        if size < 4:
            raise UsageError(f"images of {size}x{size} are too small for WideResNet; use 4x4")
        widths = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = _convolution(channels, widths[0], 3, 1, norm)
        blocks: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            for place in range((depth - 4) // 6):
                fan_in, stride = (inputs, 2 if stage else 1) if place == 0 else (outputs, 1)
                blocks.append(WideBlock(fan_in, outputs, stride, drop_rate, norm))
        self.features = nn.Sequential(*blocks)
        self.bn = norm2d(norm, widths[-1])
        self.head = nn.Identity() if ways is None else nn.Linear(widths[-1], ways)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What each of the three stages makes of `[B, channels, size, size]`, the last one behind
        its norm and ReLU: `[B, C, h, w]`."""
        found, each = [], len(self.features) // 3
        x = self.conv1(x)
        for number, block in enumerate(self.features, 1):
            x = block(x)
            if number % each == 0:
                found.append(x)
        return [*found[:-1], F.relu(self.bn(found[-1]))]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, size, size]` to logits `[B, N]`, or to features `[B, D]`."""
        return self.head(self.maps(x)[-1].mean((2, 3)))


def _convolution(inputs: int, outputs: int, side: int, stride: int, norm: NormPolicy) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer
