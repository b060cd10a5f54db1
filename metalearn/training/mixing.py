"""Mixing the images of a batch in pairs, or their maps inside a network: mixup, CutMix, manifold
mixup."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from metalearn.errors import UsageError


class Labelled(NamedTuple):
    """Images of which each may be of two classes.

    x: `[B, C, H, W]`. y, other: int64 `[B]`. share: how much of each is of class `y`; the rest is
    of class `other`. partner: int64 `[B]`, where the images are still to be mixed, inside the
    network: with which of the batch. place: in [0, 1), in which of its layers.
    """

    x: Tensor
    y: Tensor
    other: Tensor
    share: float = 1.0
    partner: Tensor | None = None
    place: float = 0.0


@dataclass(frozen=True)
class Mixing:
    """Each image of a batch with another of it, in a share that is Beta(alpha, alpha).

        x = share * x_i + (1 - share) * x_j      mixup (Zhang et al. 2018, section 1)
        x = x_j inside a box, x_i around it      CutMix (Yun et al. 2019, eqs. 1 and 2)

    The box has the part 1 - share of the image and its centre anywhere; where it is cut off at the
    edge, the share is what is left of x_i. Manifold mixup mixes as mixup does, but what a layer of
    the network takes (`manifold.py`): here only the partners, the share and the layer are drawn.
    mixup, cutmix, manifold: alpha of each, 0 for without; with several, every batch has one of them
    at even odds.

    Raises UsageError for alphas below 0.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    manifold: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                key = "manifold_mixup.alpha" if name == "manifold" else f"training.{name}"
                raise UsageError(f"{key}={value} must be 0 or more, and finite")

    @property
    def mixes(self) -> bool:
        """Whether an image is mixed with others of its batch."""
        return any(vars(self).values())

    def __call__(self, x: Tensor, y: Tensor, rng: np.random.Generator) -> Labelled:
        """The batch `x` `[B, C, H, W]`, `y` `[B]` mixed by the numbers of `rng`."""
        kinds = [name for name in ("cutmix", "mixup", "manifold") if getattr(self, name)]
        if not kinds:
            return Labelled(x, y, y)
        # Of `random` alone: numpy does not change how it draws.
        which, chance, row, column = rng.random(4)
        partner = torch.from_numpy(np.argsort(rng.random(len(x)), kind="stable")).to(x.device)
        kind = kinds[int(which * len(kinds))]
        alpha = getattr(self, kind)
        share = float(betaincinv(alpha, alpha, chance))
        other = y[partner]
        if kind == "manifold":
            return Labelled(x, y, other, share, partner, rng.random())
        if kind == "mixup":
            return Labelled(torch.lerp(x[partner], x, share), y, other, share)
        height, width = x.shape[-2:]
        top, bottom = _sides(height, share, row)
        left, right = _sides(width, share, column)
        x, pasted = x.clone(), x[partner, :, top:bottom, left:right]
        x[:, :, top:bottom, left:right] = pasted
        left_over = 1 - (bottom - top) * (right - left) / (height * width)
        return Labelled(x, y, other, left_over)


def _sides(size: int, share: float, centre: float) -> tuple[int, int]:
    """Where a box with the part `sqrt(1 - share)` of `size` begins and ends, kept inside."""
    half = int(size * (1 - share) ** 0.5) // 2
    middle = int(centre * size)
    return max(middle - half, 0), min(middle + half, size)
