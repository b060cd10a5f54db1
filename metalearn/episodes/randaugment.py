"""RandAugment (Cubuk et al. 2020) of a batch on its device: every image draws its operations.

The operations and their ranges are those of torchvision's `transforms.v2.RandAugment`. Images
that drew the same operation are changed together.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.episodes.pixels import blend_, grey, mean_grey, nearest_pixels

MAX_MAGNITUDE = 30  # of the magnitudes
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
TONES = (
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
OPERATIONS = ("identity", *MOVES, *TONES)


def randaugment(x: Tensor, magnitude: int, draws: np.ndarray) -> Tensor:
    """`x` `[B, C, H, W]` in [0, 1], changed; C is 1 or 3.

    magnitude: of every operation, 0 to 30. draws: uniform in [0, 1), `[operations, B, 2]`: which
    operation, and below 0.5 against its direction.
    """
    for draw in draws:
        which = (draw[:, 0] * len(OPERATIONS)).astype(np.int64)
        x = apply_operations(x, which, np.where(draw[:, 1] < 0.5, -1, 1), magnitude)
    return x


def apply_operations(x: Tensor, which: np.ndarray, signs: np.ndarray, magnitude: int) -> Tensor:
    """Operation `which[b]` of image b, in the direction `signs[b]`; both `[B]`.

    They are on the host, which then need not ask the device who drew what.
    """
    order = np.argsort(which, kind="stable")
    which, signs = which[order], signs[order]
    places, share = to_device(order, x.device), magnitude / MAX_MAGNITUDE
    factors = to_device((1 + 0.9 * share * signs).astype(np.float32), x.device).view(-1, 1, 1, 1)
    x = x[places]
    ends = np.cumsum(np.bincount(which, minlength=len(OPERATIONS))).tolist()
    moved = slice(ends[0], ends[len(MOVES)])
    if moved.start < moved.stop:
        move = to_device(2 * (which[moved] - 1) + (signs[moved] < 0), x.device)
        x[moved] = _warp(x[moved], move, share)
    for number in range(len(MOVES) + 1, len(OPERATIONS)):
        start, end = ends[number - 1], ends[number]
        if start < end:
            _adjust_(x[start:end], OPERATIONS[number], factors[start:end], magnitude)
    return torch.empty_like(x).index_copy_(0, places, x)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on `device`; the host does not wait for it."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _matrices(share: float, height: int, width: int) -> list[list[list[float]]]:
    """Where a pixel's (column, row) comes from, seen from the middle: every move, each forward
    and backward."""
    both = []
    for sign in (1, -1):
        shear, angle = 0.3 * share * sign, math.radians(30 * share * sign)
        right, down = (sign * int(150 / 331 * side * share) for side in (width, height))
        cos, sin = math.cos(angle), math.sin(angle)
        moves = {
            "shear_x": [[1, shear, shear * height / 2], [0, 1, 0]],
            "shear_y": [[1, 0, 0], [shear, 1, shear * width / 2]],
            "translate_x": [[1, 0, -right], [0, 1, 0]],
            "translate_y": [[1, 0, 0], [0, 1, -down]],
            "rotate": [[cos, -sin, 0], [sin, cos, 0]],
        }
        both.append([moves[name] for name in MOVES])
    return [matrix for pair in zip(*both, strict=True) for matrix in pair]


def _warp(x: Tensor, move: Tensor, share: float) -> Tensor:
    """The nearest pixel of where each comes from. move: `[B]`, which of `_matrices`."""
    h, w = x.shape[-2:]
    matrices = to_device(np.array(_matrices(share, h, w), np.float32), x.device)
    right, down = (w - 1) / 2, (h - 1) / 2
    column = torch.arange(w, device=x.device) - right
    row = torch.arange(h, device=x.device)[:, None] - down
    across, along = matrices[..., None, None].unbind(1)
    columns = across[:, 0] * column + across[:, 1] * row + across[:, 2] + right
    rows = along[:, 0] * column + along[:, 1] * row + along[:, 2] + down
    return nearest_pixels(x, rows, columns, move)


def _adjust_(x: Tensor, name: str, factor: Tensor, magnitude: int) -> Tensor:
    """`x` changed in place by an operation that moves no pixel. factor: `[B, 1, 1, 1]`."""
    # Imported where it is used: seconds that no other run should cost.
    import torchvision.transforms.v2.functional as TF

    match name:
        case "brightness":
            return blend_(x, None, factor)
        case "color":
            return blend_(x, grey(x), factor) if x.shape[1] == 3 else x
        case "contrast":
            return blend_(x, mean_grey(x), factor)
        case "sharpness":
            return blend_(x, _blurred(x), factor)
        case "posterize":
            return x.copy_(TF.posterize(x, round(8 - 4 * magnitude / MAX_MAGNITUDE)))
        case "solarize":
            return x.copy_(TF.solarize(x, 1 - magnitude / MAX_MAGNITUDE))
        case "autocontrast":
            return x.copy_(TF.autocontrast(x))
        case _:
            return x.copy_(TF.equalize(x))


def _blurred(x: Tensor) -> Tensor:
    """The mean of each pixel, five times, and its eight neighbours; the rim as it is."""
    w = x.shape[-1]
    blurred = x.clone()
    if min(x.shape[-2:]) > 2:
        # Rows and images run on into one another, so that every sum is one pass; of what is
        # summed across their ends the rim alone would see anything.
        flat = x.flatten()
        three = (flat[:-2] + flat[1:-1]).add_(flat[2:])
        nine = (three[: -2 * w] + three[w:-w]).add_(three[2 * w :])
        nine = F.pad(nine, (w + 1, w + 1)).view_as(x)[..., 1:-1, 1:-1]
        blurred[..., 1:-1, 1:-1].mul_(4 / 13).add_(nine, alpha=1 / 13)
    return blurred
