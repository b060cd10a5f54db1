"""Augmentations of images `[B, C, H, W]` in [0, 1], each image with its own parameters.

A function whose name ends in an underscore changes `x` itself and returns it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as in torchvision
ERASED = (0.02, 0.33)  # share of the image; Zhong et al. 2020
RATIO = (0.3, 1 / 0.3)  # height over width of what is erased
CACHED = 2**17  # numbers


def nearest_pixels(x: Tensor, rows: Tensor, columns: Tensor, which: Tensor | None = None) -> Tensor:
    """Sample image b at `rows[b]` and `columns[b]`: the nearest pixel, black outside.

    rows, columns: float `[B, H, W]`, or what broadcasts to it; with `which`, int64 `[B]`, those of
    image b are `rows[which[b]]` and `columns[which[b]]`.
    """
    h, w = x.shape[-2:]
    # Of all ways to gather pixels the fastest on a CPU, by a factor of two to three.
    grid = x.new_empty(max(len(rows), len(columns)), h, w, 2)
    grid[..., 0] = (2 * columns + 1) / w - 1
    grid[..., 1] = (2 * rows + 1) / h - 1
    if which is not None:
        grid = grid[which]
    return F.grid_sample(x, grid, "nearest", "zeros", align_corners=False)


def rotated(x: Tensor, quarters: Tensor) -> Tensor:
    """Image b rotated counter-clockwise by `quarters[b]` quarter turns. Images must be square."""
    side = x.shape[-1]
    at = torch.arange(side, dtype=x.dtype, device=x.device).expand(side, side)
    rows, columns = (
        torch.stack([places.rot90(number) for number in range(4)]) for places in (at.T, at)
    )
    return nearest_pixels(x, rows, columns, quarters)


def crop_and_flip(x: Tensor, frame: int, place: Tensor, mirrored: Tensor) -> Tensor:
    """Crop and mirror. place: `[B, 2]` in [0, 1), of the crop_and_flip in the frame."""
    h, w = x.shape[-2:]
    shift = (place * (2 * frame + 1)).floor() - frame
    rows = torch.arange(h, device=x.device) + shift[:, :1]
    columns = torch.arange(w, device=x.device).expand(len(x), w)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + shift[:, 1:]
    return nearest_pixels(x, rows[:, :, None], columns[:, None, :])


def blend_(x: Tensor, other: Tensor | None, share: Tensor) -> Tensor:
    """`share * x + (1 - share) * other`, kept in [0, 1]. other: None for black.

    share: `[B, 1, 1, 1]`; above 1 it leads away from `other`.
    """
    x.mul_(share)
    if other is not None:
        x.add_(other * (1 - share))
    return x.clamp_(0, 1)


def jitter_(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation times `factors` `[B, 3]`, as torchvision defines them."""
    # A dozen passes: on a CPU over as many images at a time as its cache holds.
    size = len(x) if x.is_cuda else max(1, CACHED // x[0].numel())
    for part, factor in zip(x.split(size), factors.split(size), strict=True):
        brightness, contrast, saturation = factor.view(-1, 3, 1, 1, 1).unbind(1)
        blend_(part, None, brightness)
        blend_(part, mean_grey(part), contrast)
        if x.shape[1] == 3:
            blend_(part, grey(part), saturation)
    return x


def grey(x: Tensor) -> Tensor:
    """`[B, 1, H, W]`; `x` itself where it has not three channels."""
    if x.shape[1] != 3:
        return x
    # Not a matrix product, which a CUDA device may round to TF32.
    red, green, blue = x.split(1, 1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def mean_grey(x: Tensor) -> Tensor:
    """The mean of `grey`, `[B, 1, 1, 1]`."""
    return grey(x.mean((2, 3), keepdim=True)).mean(1, keepdim=True)


def erase_(x: Tensor, chosen: Tensor, place: Tensor, shape: Tensor) -> Tensor:
    """A black rectangle where `chosen` `[B]`. place: area, row, column `[B, 3]`; shape: `[B]`."""
    h, w = x.shape[-2:]
    area = (ERASED[0] + (ERASED[1] - ERASED[0]) * place[:, 0]) * h * w
    low, high = map(math.log, RATIO)
    ratio = (low + (high - low) * shape).exp()
    height = (area * ratio).sqrt().clamp(1, h).round()
    width = (area / ratio).sqrt().clamp(1, w).round()
    top = (place[:, 1] * (h - height + 1)).floor()
    left = (place[:, 2] * (w - width + 1)).floor()
    row, column = torch.arange(h, device=x.device), torch.arange(w, device=x.device)

    def between(at: Tensor, start: Tensor, length: Tensor) -> Tensor:
        return (at >= start[:, None]) & (at < (start + length)[:, None])

    # A product of floats: to fill by a mask of booleans takes several times as long.
    high = (between(row, top, height) & chosen[:, None]).to(x.dtype)
    wide = between(column, left, width).to(x.dtype)
    return x.mul_(1 - (high[:, :, None] * wide[:, None, :])[:, None])
