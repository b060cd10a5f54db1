"""The networks and tasks of the benchmark, of torch's own layers, the same in every process."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.benchmarks.cells import Cell
from metalearn.errors import UsageError
from metalearn.types import Batch, Episodes

DISTINCT = 2
"""How many tasks of a meta-batch differ; the others repeat them, so that a float64 reference
costs two tasks whatever T. The time does not depend on the values."""


def module(model: str) -> nn.Module:
    """The network `model`, with the weights of seed 0. Raises UsageError for another name."""
    size = int(model.partition("-")[2] or 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        match model.partition("-")[0]:
            case "mlp":
                hidden = nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU()
                return nn.Sequential(*hidden, nn.Linear(40, 1))
            case "tiny":
                return BenchmarkConv4(1, 16, filters=4)
            case "smooth":
                return BenchmarkConv4(1, size, smooth=True)
            case "conv4":
                return BenchmarkConv4(1 if size == 28 else 3, size)
            case "resnet12":
                return BenchmarkResNet12()
            case "vit":
                return _vit(size)
    raise UsageError(f"no network {model!r}; see metalearn.benchmarks.cells")


def image_shape(model: str) -> tuple[int, ...]:
    """Of one example, [channels, size, size]; [1] for the sinusoid."""
    name, _, size = model.partition("-")
    if name == "mlp":
        return (1,)
    side = int(size or 16)
    return (3 if side in (32, 84) else 1, side, side)


def episodes(cell: Cell) -> Episodes:
    """The meta-batch of `cell`, float32: noise whose mean depends on the class."""
    g = torch.Generator().manual_seed(2 * cell.draw)
    distinct = min(DISTINCT, cell.tasks)
    shape = image_shape(cell.model)

    def regression() -> Batch:
        x = torch.rand(distinct, 10, 1, generator=g) * 10 - 5
        return Batch(x, torch.sin(x + torch.arange(distinct).view(-1, 1, 1)))

    def images(each: int) -> Batch:
        y = torch.arange(cell.ways).repeat_interleave(each).expand(distinct, -1)
        x = torch.randn(distinct, cell.ways * each, *shape, generator=g)
        means = torch.randn(distinct, cell.ways, *shape, generator=class_means.clone_state())
        return Batch(x + means.repeat_interleave(each, 1), y.contiguous())

    class_means = torch.Generator().manual_seed(2 * cell.draw + 1)
    if cell.model == "mlp":
        tasks = Episodes(regression(), regression())
    else:
        tasks = Episodes(images(cell.shots), images(cell.queries))
    repeat = torch.arange(cell.tasks) % distinct
    return tasks.map(lambda t: t[repeat])


def user_loss(model: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss as a user of torch writes it."""
    return F.mse_loss if model == "mlp" else F.cross_entropy


class BenchmarkConv4(nn.Module):
    """Four blocks of 3x3 convolution, batch norm, 2x2 max-pooling, ReLU; then a linear head.

    ReLU stands after pooling, with which it commutes: every framework gets the faster order.
    smooth: tanh and average pooling, to tell rounding from the flips of ReLU and max-pooling.
    """

    def __init__(self, channels: int, size: int, filters: int = 64, smooth: bool = False):
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in in (channels, filters, filters, filters):
            layers += [
                nn.Conv2d(fan_in, filters, 3, padding=1),
                nn.BatchNorm2d(filters, track_running_stats=False),
                nn.AvgPool2d(2) if smooth else nn.MaxPool2d(2),
                nn.Tanh() if smooth else nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(filters * (size // 16) ** 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels, size, size]` to `[B, 5]`."""
        return self.head(self.features(x).flatten(1))


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions beside a 1x1 one, leaky ReLU, 2x2 max-pooling."""

    def __init__(self, fan_in: int, width: int):
        super().__init__()
        for i, inputs in enumerate((fan_in, width, width)):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, 3, padding=1, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(width, track_running_stats=False))
        self.short = nn.Conv2d(fan_in, width, 1, bias=False)
        self.short_norm = nn.BatchNorm2d(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, width, H/2, W/2]`."""
        y = x
        for i in range(3):
            y = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(y))
            if i < 2:
                y = F.leaky_relu(y, 0.1)
        y = y + self.short_norm(self.short(x))
        return F.leaky_relu(F.max_pool2d(y, 2), 0.1)


class BenchmarkResNet12(nn.Module):
    """The ResNet-12 of the few-shot literature, widths 64-160-320-640, without DropBlock."""

    def __init__(self):
        super().__init__()
        widths = (3, 64, 160, 320, 640)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.head = nn.Linear(640, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 3, 84, 84]` to `[B, 5]`."""
        return self.head(self.blocks(x).mean((2, 3)))


def _vit(size: int) -> nn.Module:
    import timm  # slow to import, and needed for this one alone

    vit = timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=4, num_classes=5)
    for block in cast(Any, vit).blocks:
        block.attn.fused_attn = False  # fused attention has no double backward
    return vit
