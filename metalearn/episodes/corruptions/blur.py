"""Blurs: defocus, frosted glass, motion, zoom."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.episodes.corruptions.chance import between, uniform


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """`[2 * radius + 1]`, of sum 1."""
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-places.square() / (2 * sigma**2)) if sigma else (places == 0).double()
    return weights / weights.sum()


def smoothed(x: Tensor, sigma: float, truncate: float = 4.0, mode: str = "replicate") -> Tensor:
    """`x` `[B, C, H, W]` after a Gaussian blur cut at `truncate` deviations. mode: beyond the rim,
    "replicate", or "symmetric", a mirror image that starts with the rim."""
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return x
    line = gaussian_kernel(sigma, radius).to(x)
    for axis in (2, 3):
        places = torch.arange(-radius, x.shape[axis] + radius, device=x.device)
        if mode == "symmetric":
            places = mirrored(places, x.shape[axis])
        wide = x.index_select(axis, places.clamp(0, x.shape[axis] - 1))
        wide = wide.movedim(axis, -1)
        x = F.conv1d(wide.reshape(-1, 1, wide.shape[-1]), line.view(1, 1, -1))
        x = x.view(*wide.shape[:-1], -1).movedim(-1, axis)
    return x


def mirrored(places: Tensor, size: int) -> Tensor:
    """Places beyond 0 to size - 1 in a mirror at the outer edge of the rim."""
    around = places.remainder(2 * size)
    return torch.minimum(around, 2 * size - 1 - around)


def disk(radius: float, blur: float) -> Tensor:
    """A disk of sum 1, its edge softened, without the zeros around it."""
    reach = 8 if radius <= 8 else math.ceil(radius)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (places.square().unsqueeze(1) + places.square() <= radius**2).double()
    soft = gaussian_kernel(blur, 1 if radius <= 8 else 2)
    kernel = torch.outer(soft, soft)
    pad = len(soft) // 2
    # OpenCV mirrors at the rim of the kernel's own array.
    wide = F.pad((inside / inside.sum())[None, None], [pad] * 4, mode="reflect")
    found = F.conv2d(wide, kernel[None, None])[0, 0]
    rows = (found.sum(1) > 0).nonzero()
    margin = int(min(int(rows.min()), len(found) - 1 - int(rows.max())))
    return found[margin : len(found) - margin, margin : len(found) - margin]


def defocus_blur(x: Tensor, how: Sequence[float], seeds: Tensor) -> Tensor:
    """The mean over a disk. how: its radius, and the deviation that softens its edge."""
    kernel = disk(*how).to(x)
    pad = kernel.shape[0] // 2
    for axis in (2, 3):
        size = x.shape[axis]
        places = torch.arange(-pad, size + pad, device=x.device)
        around = places.remainder(max(2 * size - 2, 1))
        x = x.index_select(axis, torch.minimum(around, (2 * size - 2 - around).abs()))
    weight = kernel[None, None].expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, weight, groups=x.shape[1]).clamp(0, 1)


def glass_blur(x: Tensor, how: tuple[float, int, int], seeds: Tensor) -> Tensor:
    """A blur, pixels that each take the place of a neighbour, a blur. how: the deviation of the
    blurs, how far a neighbour is, how often.

    From the last pixel to the first, each becomes what its neighbour is by then, as in the
    published code, which writes a swap of two views: where that has changed before, the one
    that it took. These chains are followed for all pixels at once, twice as far every time.
    """
    sigma, far, times = how
    x = (smoothed(x, sigma).clamp(0, 1) * 255).floor() / 255
    height, width = x.shape[2:]
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    number = rows.unsqueeze(1) * width + columns
    moves = ((rows > far) & (rows <= height - far)).unsqueeze(1)
    moves = moves & (columns > far) & (columns <= width - far)
    for turn in range(times):
        step = (uniform(seeds, turn, 2, height, width) * 2 * far).floor().long() - far
        aside = (rows.unsqueeze(1) + step[:, 0]).clamp(0, height - 1) * width
        aside = aside + (columns + step[:, 1]).clamp(0, width - 1)
        aside = torch.where(moves, aside, number)
        later = moves.flatten()[aside.flatten(1)].view_as(aside) & (aside > number)
        # The first H * W are pixels as they become, the others as they were.
        whole = height * width
        before = (number.flatten() + whole).expand(len(x), -1)
        source = torch.where(later, aside, aside + whole).flatten(1)
        pointer = torch.cat([source, before], 1)
        for _ in range(max(whole - 1, 1).bit_length()):
            pointer = pointer.gather(1, pointer)
        places = (pointer[:, :whole] - whole).unsqueeze(1).expand(-1, x.shape[1], -1)
        x = x.flatten(2).gather(2, places).view_as(x)
    return smoothed(x, sigma).clamp(0, 1)


def moved(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """A blur along one direction, as ImageMagick's: half a Gaussian of `2 * radius + 1` pixels,
    each at a whole pixel. angle: `[B]`, degrees."""
    count = 2 * radius + 1
    along = torch.arange(count, dtype=torch.float64, device=x.device)
    weights = torch.exp(-along.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    turn = torch.deg2rad(angle.double()).unsqueeze(1)
    down = -torch.ceil(along * turn.sin() - 0.5).long()
    right = -torch.ceil(along * turn.cos() - 0.5).long()
    # What is shifted by d is read at -d.
    size = 2 * count - 1
    place = (count - 1 - down) * size + (count - 1 - right)
    kernel = torch.zeros(len(x), size * size, dtype=torch.float64, device=x.device)
    kernel = kernel.scatter_add(1, place, weights.expand(len(x), -1)).to(x)
    images, channels = x.shape[:2]
    kernel = kernel.view(images, 1, size, size).repeat_interleave(channels, 0)
    wide = F.pad(x, [count - 1] * 4, mode="replicate").flatten(0, 1).unsqueeze(0)
    return F.conv2d(wide, kernel, groups=images * channels).view_as(x)


def motion_blur(x: Tensor, how: tuple[int, float], seeds: Tensor) -> Tensor:
    """Along a direction of -45 to 45 degrees. how: radius and deviation."""
    return moved(x, *how, between(seeds, 0, -45.0, 45.0)).clamp(0, 1)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of `x`, `factor` times as large, bilinear."""
    parts = []
    for size in x.shape[2:]:
        inside = math.ceil(size / factor)
        top = (size - inside) // 2
        parts.append((slice(top, top + inside), round(inside * factor)))
    (rows, height), (columns, width) = parts
    large = F.interpolate(
        x[:, :, rows, columns], (height, width), mode="bilinear", align_corners=True
    )
    top, left = (height - x.shape[2]) // 2, (width - x.shape[3]) // 2
    return large[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def zoom_blur(x: Tensor, how: tuple[int, float], seeds: Tensor) -> Tensor:
    """The mean of the image and of so many of it, each larger by a step. how: their number, the
    step."""
    count, step = how
    total = x.clone()
    for number in range(count):
        total += zoomed(x, 1 + number * step)
    return (total / (count + 1)).clamp(0, 1)
