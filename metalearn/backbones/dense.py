"""Networks that answer at every place of a feature map: boxes of objects, or classes of pixels.

The maps of a backbone's stages meet on one grid: each through a 1x1 convolution, the coarser ones
brought to the grid by bilinear interpolation, and added up, as in a feature pyramid (Lin, Dollar,
Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for Object Detection, 2017).
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.backbones.heads import unit
from metalearn.backbones.weights import Weights, read_weights
from metalearn.errors import UsageError, check_whole

SIDES = 4
"""Numbers that tell a box: how far its sides are from the place."""
FOREGROUND = 0.1  # the share that a class has at the start: Lin et al. 2017 (focal loss), 4.1


@functools.cache
def _bilinear(before: int, after: int) -> np.ndarray:
    """`[after, before]`, as torch's interpolation without aligned corners. Of numpy: a tensor that
    was made inside of a transform could not be kept for the next."""
    at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, None)
    low = np.minimum(np.floor(at).astype(int), before - 1)
    rest, rows = (at - low)[:, None], np.eye(before)
    return (1 - rest) * rows[low] + rest * rows[np.minimum(low + 1, before - 1)]


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """`[..., h, w]` to `[..., *size]`, bilinear. Two products of matrices: exact under every
    transform of `torch.func`, in any order of derivative."""
    height, width = size
    if x.shape[-2:] == (height, width):
        return x
    sides = ((x.shape[-2], height), (x.shape[-1], width))
    rows, columns = (torch.from_numpy(_bilinear(*side)).to(x) for side in sides)
    return rows @ x @ columns.mT


def maps_of(body: nn.Module, x: Tensor) -> list[Tensor]:
    """The feature maps `[B, C, h, w]` of a backbone's stages, from fine to coarse. Raises
    UsageError for one that has none."""
    ours: Any = getattr(body, "maps", None)
    if ours is not None:
        return ours(x)
    theirs: Any = getattr(body, "forward_intermediates", None)  # timm's
    if theirs is not None:
        return theirs(x, intermediates_only=True)
    raise UsageError(
        f"{type(body).__name__} gives no feature maps; use backbone=conv4, resnet12, cifar_resnet, "
        "wide_resnet or timm"
    )


class DenseNetwork(nn.Module):
    """A backbone's feature maps on one grid, and a head at each of its places.

    body: a backbone, `maps_of` of which is asked. head: from maps `[B, width, h, w]` to the
        answers. example: inputs `[B, C, H, W]`, by which the sizes are found.
    stride: pixels of a place; the grid is that of the finest map of so many or more.
    width: channels of the maps.
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, example: Tensor, stride: int, width: int
    ) -> None:
        super().__init__()
        found = [tuple(m.shape[1:]) for m in _evaluated(body, example)]
        rough = [place for place, (_, h, _) in enumerate(found) if example.shape[2] / h >= stride]
        self.first = rough[0] if rough else len(found) - 1
        self.grid = found[self.first][1:]
        self.body = body
        self.lateral = nn.ModuleList(nn.Conv2d(m[0], width, 1) for m in found[self.first :])
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the head's `[B, A, h, w]`."""
        maps = maps_of(self.body, x)[self.first :]
        levels = [
            resized(lateral(m), self.grid) for lateral, m in zip(self.lateral, maps, strict=True)
        ]
        return self.head(F.relu(self.smooth(F.relu(torch.stack(levels).sum(0)))))


class DenseHead(nn.Module):
    """Logits of the background and of N classes at each place, and the sides of a box.

        logits_n = <w_n, f> + b_n,   or, `cosine`, scale * <w_n, f> / (|w_n| |f|)
        sides = W f + c

    width: D, channels of the maps. ways: N; None for the maps themselves in the place of logits,
    as prototypes take them. sides: `SIDES` for boxes, 0 for none. cosine: the classes by angle, as
    in Wang, Huang, Darrell, Gonzalez, Yu: Frustratingly Simple Few-Shot Object Detection, 2020,
    section 3.2.
    """

    def __init__(self, width: int, ways: int | None, sides: int, cosine: bool = False):
        super().__init__()
        self.cosine = cosine
        self.sides = sides

        def drawn(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, width) / math.sqrt(width) * 0.1)

        if ways is not None:
            self.weight = drawn(ways + 1)
            background = math.log(ways * (1 - FOREGROUND) / FOREGROUND) if sides else 0.0
            if cosine:
                self.scale = nn.Parameter(torch.tensor(20.0))
            else:
                self.bias = nn.Parameter(torch.tensor([background, *[0.0] * ways]))
        if sides:
            self.box_weight = drawn(sides)
            self.box_bias = nn.Parameter(torch.full((sides,), 1.5))  # 1.7 places

    def forward(self, maps: Tensor) -> Tensor:
        """`[B, D, h, w]` to `[B, 1 + N + sides, h, w]`, or to `[B, D + sides, h, w]`."""
        x = maps.movedim(1, -1)
        if not hasattr(self, "weight"):
            parts = [x]
        elif self.cosine:
            parts = [self.scale * F.linear(unit(x), unit(self.weight))]
        else:
            parts = [F.linear(x, self.weight, self.bias)]
        if self.sides:
            parts.append(F.linear(x, self.box_weight, self.box_bias))
        return torch.cat(parts, -1).movedim(-1, 1)


def detection(
    module: nn.Module,
    path: str | None,
    /,
    example: Tensor,
    stride: int = 8,
    width: int = 64,
    cosine: bool = False,
    weights: str | None = None,
) -> DenseNetwork:
    """The backbone `module`, its head at `path` left out, as a one-stage detector.

    One box at each place, as in FCOS (Tian, Shen, Chen, He: FCOS: Fully Convolutional One-Stage
    Object Detection, 2019). path: None for a backbone without a head, of which prototypes are
    taken. weights: a detector of `metalearn pretrain task=detection`, a run folder or file, all of
    which is loaded but for the classes. The rest as in `DenseNetwork` and `DenseHead`. Raises
    UsageError.
    """
    made = _dense(module, path, example, stride, width, SIDES, cosine)
    if weights is not None:
        _load(made, read_weights(weights))
    return made


def segmentation(
    module: nn.Module,
    path: str | None,
    /,
    example: Tensor,
    stride: int = 4,
    width: int = 64,
    cosine: bool = False,
) -> DenseNetwork:
    """The backbone `module`, its head at `path` left out, with a light decoder of the classes of
    places. Arguments and errors as in `detection`."""
    return _dense(module, path, example, stride, width, 0, cosine)


def _dense(
    module: nn.Module,
    path: str | None,
    example: Tensor,
    stride: int,
    width: int,
    sides: int,
    cosine: bool,
) -> DenseNetwork:
    check_whole("head.stride", stride, 1)
    check_whole("head.width", width, 1)
    if not isinstance(example, Tensor) or example.ndim != 4:
        raise UsageError("head=detection and head=segmentation are for images")
    module, ways = copy.deepcopy(module), None
    if path is not None:
        layer = module.get_submodule(path) if path else None
        if not isinstance(layer, nn.Linear):
            raise UsageError("the network ends in no linear layer that a dense head could replace")
        ways = layer.out_features
        module.set_submodule(path, nn.Identity())
    return DenseNetwork(module, DenseHead(width, ways, sides, cosine), example, stride, width)


@torch.no_grad()
def _evaluated(body: nn.Module, example: Any) -> list[Tensor]:
    modes = {part: part.training for part in body.modules()}
    try:
        maps = maps_of(body.eval(), example)
    finally:
        for part, training in modes.items():
            part.training = training
    if not maps or any(m.ndim != 4 for m in maps):
        raise UsageError(f"{type(body).__name__} gives no feature maps [B, C, h, w]")
    return maps


@torch.no_grad()
def _load(made: DenseNetwork, weights: Weights) -> None:
    """The tensors of a detector into another, classes left out. Raises UsageError."""
    own = {n: t for n, t in made.state_dict().items() if n.rpartition("head.")[2] not in _CLASSES}
    given = {n: t for n, t in weights.tensors.items() if n.rpartition("head.")[2] not in _CLASSES}
    for name, tensor in own.items():
        if name not in given or given[name].shape != tensor.shape:
            raise UsageError(
                f"{weights.source} is no detector for this network: {name} "
                f"{'is not there' if name not in given else list(given[name].shape)}; use the "
                "backbone, head.stride and head.width that it was trained with"
            )
        tensor.copy_(given[name])
    if lost := [n for n in given if n not in own and n.endswith("running_mean")]:
        raise UsageError(
            f"{weights.source} has averages ({lost[0]}) that this network does not read; use "
            "backbone.norm=frozen"
        )


_CLASSES = ("weight", "bias", "scale")
"""Of the head, what is of its classes."""
