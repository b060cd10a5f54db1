"""The residual networks of CIFAR: 6n + 2 layers in three stages of 16, 32 and 64 channels."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones.norms import NormPolicy, norm2d
from metalearn.errors import UsageError

WIDTHS = (16, 32, 64)


def convolution(inputs: int, outputs: int, stride: int, norm: NormPolicy) -> nn.Conv2d:
    """3x3, drawn as He et al. 2015 draw it; with a bias only where no norm follows."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight)
    return layer


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the input itself: where it has to shrink, every other pixel of
    it, with channels of zeros ("option A" of the paper, which has no weights)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormPolicy):
        super().__init__()
        self.conv1 = convolution(inputs, outputs, stride, norm)
        self.bn1 = norm2d(norm, outputs)
        self.conv2 = convolution(outputs, outputs, 1, norm)
        self.bn2 = norm2d(norm, outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.stride > 1 or self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(h + x)


class CifarResNet(nn.Module):
    """ResNet-20, -32, -44, -56 for 32x32 images; features are the mean over positions, 64 numbers.

    ways: outputs N of the head; None leaves it out, and the output is the features `[B, 64]`.
    channels, size: of the square input images `[B, channels, size, size]`.
    depth: 6n + 2. norm: the norm policy, see `metalearn.backbones.norms`.
    last_map: "mean", its average over places, or "flatten", for classifiers that look at places:
        64 * (size / 4) ** 2 features.

    Raises UsageError for another depth.

    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2016, section 4.2.
    """

    def __init__(
        self,
        ways: int | None = 5,
        channels: int = 3,
        size: int = 32,
        depth: int = 56,
        norm: NormPolicy = "transductive",
        last_map: Literal["mean", "flatten"] = "mean",
    ):
        super().__init__()
        if last_map not in ("mean", "flatten"):
            raise UsageError(f"last_map={last_map!r} is not known; use mean or flatten")
        if depth < 8 or depth % 6 != 2:
            raise UsageError(f"depth={depth} must be 6n + 2; use 20, 32, 44 or 56")
        if size < 4:
            raise UsageError(f"images of {size}x{size} are too small for CifarResNet; use 4x4")
        self.conv1 = convolution(channels, WIDTHS[0], 1, norm)
        self.bn1 = norm2d(norm, WIDTHS[0])

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = BasicBlock(inputs, outputs, stride, norm)
            rest = (BasicBlock(outputs, outputs, 1, norm) for _ in range((depth - 2) // 6 - 1))
            return nn.Sequential(first, *rest)

        self.layer1 = stage(WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = stage(WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = stage(WIDTHS[1], WIDTHS[2], 2)
        self.last_map = last_map
        width = WIDTHS[2] * (((size + 3) // 4) ** 2 if last_map == "flatten" else 1)
        self.head = nn.Identity() if ways is None else nn.Linear(width, ways)

    def maps(self, x: Tensor) -> list[Tensor]:
        """What each of the three stages makes of `[B, channels, size, size]`: `[B, C, h, w]`."""
        first = self.layer1(F.relu(self.bn1(self.conv1(x))))
        second = self.layer2(first)
        return [first, second, self.layer3(second)]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, size, size]` to logits `[B, N]`, or to features `[B, 64]`."""
        h = self.maps(x)[-1]
        return self.head(h.flatten(1) if self.last_map == "flatten" else h.mean((2, 3)))
