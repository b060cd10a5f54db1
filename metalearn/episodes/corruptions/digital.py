"""What encoders and lenses do: elastic transform, pixelation, JPEG."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.episodes.corruptions.blur import mirrored, smoothed
from metalearn.episodes.corruptions.chance import between


def _sampled(x: Tensor, rows: Tensor, columns: Tensor, edge: str) -> Tensor:
    """`x` at places `[B, H, W]`, bilinear; beyond the rim its mirror image, with the rim twice
    ("symmetric") or once ("reflect")."""
    size = x.shape[2:]

    def inside(places: Tensor, length: int) -> Tensor:
        if edge == "symmetric":
            return mirrored(places, length)
        around = places.remainder(max(2 * length - 2, 1))
        return torch.minimum(around, (2 * length - 2 - around).abs())

    top, left = rows.floor().long(), columns.floor().long()
    total = torch.zeros_like(x)
    flat = x.flatten(2)
    for down in (0, 1):
        for right in (0, 1):
            weight = (rows - top if down else 1 - (rows - top)) * (
                columns - left if right else 1 - (columns - left)
            )
            at = inside(top + down, size[0]) * size[1] + inside(left + right, size[1])
            at = at.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
            total += flat.gather(2, at).view_as(x) * weight.unsqueeze(1).to(x)
    return total


def elastic_transform(x: Tensor, how: tuple[float, float, float], seeds: Tensor) -> Tensor:
    """An affine map that moves three points at random, then a smooth random displacement. how, in
    shares of the side: its strength, its deviation, how far the points go."""
    alpha, sigma, far = (share * min(x.shape[2:]) for share in how)
    count, height, width = len(x), *x.shape[2:]
    # The three points, (column, row), and where each goes.
    middle = torch.tensor([height // 2, width // 2], dtype=torch.float64, device=x.device)
    square = min(height, width) // 3
    corner = middle + torch.tensor([square, -square], device=x.device)
    points = torch.stack([middle + square, corner, middle - square])
    goals = points + between(seeds, 0, -far, far, 3, 2)
    ones = torch.ones(count, 3, 1, dtype=torch.float64, device=x.device)
    # From where a pixel is to where it came from.
    back = torch.linalg.solve(torch.cat([goals, ones], 2), points.expand(count, 3, 2))
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=x.device),
        torch.arange(width, dtype=torch.float64, device=x.device), indexing="ij",
    )  # fmt: skip
    grid = torch.stack([columns, rows, torch.ones_like(rows)], -1)
    came = torch.einsum("hwk,bkd->bhwd", grid, back)
    x = _sampled(x, came[..., 1], came[..., 0], "reflect")
    if not alpha:
        return x.clamp(0, 1)
    moves = [
        alpha * smoothed(between(seeds, n, -1.0, 1.0, 1, height, width), sigma, 3.0, "symmetric")
        for n in (1, 2)
    ]
    right, down = (move[:, 0] for move in moves)
    return _sampled(x, rows + down, columns + right, "symmetric").clamp(0, 1)


def _box(before: int, after: int) -> Tensor:
    """`[after, before]`: each new pixel the mean of the old ones whose centre it covers."""
    scale = before / after
    support = 0.5 * max(scale, 1.0)
    rows = torch.zeros(after, before, dtype=torch.float64)
    for place in range(after):
        centre = (place + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), before)
        at = (torch.arange(low, high) + 0.5 - centre) / max(scale, 1.0)
        inside = (at > -0.5) & (at <= 0.5)
        rows[place, low:high] = inside.double() / inside.sum()
    return rows


def pixelate(x: Tensor, share: float, seeds: Tensor) -> Tensor:
    """Fewer pixels, `share` of each side, and each as large as several."""
    down, up = [], []
    for size in x.shape[2:]:
        small = max(int(size * share), 1)
        down.append(_box(size, small).to(x))
        up.append(_box(small, size).to(x))
    small = torch.einsum("ih,bchw,jw->bcij", down[0], x, down[1])
    return torch.einsum("hi,bcij,wj->bchw", up[0], small, up[1])


_LUMA = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 "
    "62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 "
    "72 92 95 98 112 100 103 99"
)
_CHROMA = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 "
    "99 99 99 99 99 99 "
) + "99 " * 32
# ITU-T T.81, tables K.1 and K.2.
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def _table(text: str, quality: int) -> Tensor:
    """`[8, 8]`, at a quality of 1 to 100, by the scale of the Independent JPEG Group."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([int(n) for n in text.split()])
    return ((base * scale + 50) // 100).clamp(1, 255).double().view(8, 8)


def _coded(plane: Tensor, table: Tensor) -> Tensor:
    """`[B, H, W]` of -128 to 127, sides in eights, after the rounding of its cosine transform."""
    n = torch.arange(8, dtype=torch.float64, device=plane.device)
    basis = torch.cos(math.pi * (2 * n + 1) * n.unsqueeze(1) / 16) / 2
    basis[0] /= math.sqrt(2)
    blocks = plane.unflatten(2, (-1, 8)).unflatten(1, (-1, 8))  # [B, H/8, 8, W/8, 8]
    waves = torch.einsum("ui,bhiwj,vj->bhuwv", basis, blocks, basis)
    table = table.to(plane.device).view(1, 1, 8, 1, 8)
    waves = (waves / table).round() * table
    return torch.einsum("ui,bhuwv,vj->bhiwj", basis, waves, basis).reshape(plane.shape)


def jpeg_compression(x: Tensor, quality: int, seeds: Tensor) -> Tensor:
    """What JPEG makes of it: colours at half the resolution, 8x8 blocks of rounded cosine waves."""
    height, width = x.shape[2:]
    values = (x * 255).round().double()
    values = F.pad(values, (0, -width % 16, 0, -height % 16), mode="replicate")
    luma = _table(_LUMA, quality)
    if x.shape[1] == 1:
        found = _coded(values[:, 0] - 128, luma)[:, None] + 128
        return (found.round() / 255).to(x).clamp(0, 1)[..., :height, :width]
    matrix = torch.tensor(_YCC, dtype=torch.float64, device=x.device)
    planes = torch.einsum("dc,bchw->bdhw", matrix, values).round()
    light = _coded(planes[:, 0] - 128, luma) + 128
    # A half is rounded down and up in turn, from column to column.
    half = 1 + torch.arange(values.shape[3] // 2, device=x.device) % 2
    colours = ((F.avg_pool2d(planes[:, 1:], 2) * 4 + half) / 4).floor()
    colours = _coded(colours.flatten(0, 1), _table(_CHROMA, quality)).view_as(colours).round()
    colours = F.interpolate(colours, scale_factor=2.0, mode="bilinear", align_corners=False)
    planes = torch.cat([light[:, None].round().clamp(0, 255), colours.clamp(-128, 127)], 1)
    found = torch.einsum("dc,bchw->bdhw", matrix.inverse(), planes)
    return (found.round() / 255).to(x).clamp(0, 1)[..., :height, :width]
