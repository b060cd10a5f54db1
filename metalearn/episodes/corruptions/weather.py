"""Weather: snow, frost, fog."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.episodes.corruptions.blur import moved, smoothed, zoomed
from metalearn.episodes.corruptions.chance import between, normal, uniform
from metalearn.episodes.pixels import GREY


def plasma(seeds: Tensor, first: int, side: int, decay: float) -> Tensor:
    """A height map by the diamond-square algorithm, from 0 to 1, `[B, n, n]` with n the power of
    two from `side` on. first: number of its first draw. decay: of the roughness, each octave."""
    size = 1 << max(side - 1, 1).bit_length()
    maps = torch.zeros(len(seeds), size, size, dtype=torch.float64, device=seeds.device)
    step, wibble, draw = size, 100.0, first

    def mean(total: Tensor) -> Tensor:
        nonlocal draw
        draw += 1
        return total / 4 + wibble * between(seeds, draw, -wibble, wibble, *total.shape[1:])

    while step >= 2:
        half = step // 2
        corners = maps[:, ::step, ::step]
        square = corners + corners.roll(-1, 1)
        maps[:, half::step, half::step] = mean(square + square.roll(-1, 2))
        middles = maps[:, half::step, half::step]
        across = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        maps[:, ::step, half::step] = mean(across)
        down = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        maps[:, half::step, ::step] = mean(down)
        step, wibble = half, wibble / decay
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def fog(x: Tensor, how: tuple[float, float], seeds: Tensor) -> Tensor:
    """A plasma is added, and the whole scaled back. how: its strength, its decay."""
    strength, decay = how
    highest = x.amax((1, 2, 3), keepdim=True)
    height, width = x.shape[2:]
    mist = plasma(seeds, 0, max(height, width), decay)[:, None, :height, :width]
    return ((x + strength * mist.to(x)) * highest / (highest + strength)).clamp(0, 1)


def snow(x: Tensor, how: Sequence[float], seeds: Tensor) -> Tensor:
    """Flakes that fall, and the same turned by 180 degrees, over a whitened image. how: mean and
    deviation of the flakes, their size, the lowest one, radius and deviation of their fall, and how
    much of the image stays."""
    mean, scale, size, lowest, radius, sigma, kept = how
    flakes = (mean + scale * normal(seeds, 0, 1, *x.shape[2:])).to(x)
    flakes = zoomed(flakes, size)
    flakes = torch.where(flakes < lowest, torch.zeros_like(flakes), flakes).clamp(0, 1)
    flakes = (flakes * 255).floor() / 255
    flakes = moved(flakes, int(radius), sigma, between(seeds, 1, -135.0, -45.0))
    light = x if x.shape[1] == 1 else torch.einsum("bchw,c->bhw", x, x.new_tensor(GREY))[:, None]
    white = torch.maximum(x, light * 1.5 + 0.5)
    return (kept * x + (1 - kept) * white + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)


def ice(seeds: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Frost without a photograph: bright ridges between two smooth fields, finer ones beside them,
    where a third lets ice grow; bluish white, `[B, C, H, W]` in [0, 1]."""
    side = max(height, width)
    fields = [plasma(seeds, 100 * n, side, decay) for n, decay in ((1, 2.6), (2, 1.9), (3, 3.0))]
    coarse, fine, where = (field[:, None, :height, :width] for field in fields)
    ridges = 0.6 * (1 - 2 * (coarse - 0.5).abs()).pow(6) + 0.4 * (1 - 2 * (fine - 0.5).abs()).pow(4)
    grown = (1.6 * smoothed(where, 1.0) - 0.1).clamp(0, 1)
    grain = uniform(seeds, 400, 1, height, width) - 0.5
    bright = (0.25 + 0.55 * grown * (0.5 + ridges) + 0.08 * grain).clamp(0, 1)
    tint = bright.new_tensor((0.92, 0.98, 1.04) if channels == 3 else (1.0,) * channels)
    return (bright * tint.view(1, -1, 1, 1)).clamp(0, 1)


def frost(x: Tensor, how: tuple[float, float], seeds: Tensor) -> Tensor:
    """Ice over the image. how: how much of the image, of the ice.

    The published one takes five photographs; this one is drawn (`ice`), and not the same.
    """
    kept, strength = how
    return (kept * x + strength * ice(seeds, *x.shape[1:]).to(x)).clamp(0, 1)
