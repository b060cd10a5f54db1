"""AugMix of a batch on its device: chains of operations, mixed with one another and the image.

    x' = (1 - m) x + m * sum over chains i of  w_i chain_i(x),   w ~ Dirichlet(1), m ~ Beta(1, 1)

each chain of one to `depth` operations. The consistency loss between such images (eq. 1 there) is
not part of this. Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan: AugMix: A Simple Data
Processing Method to Improve Robustness and Uncertainty, 2020, algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metalearn.episodes.pixels import crop_and_flip
from metalearn.episodes.randaugment import MAX_MAGNITUDE, MOVES, OPERATIONS, apply_operations
from metalearn.errors import UsageError, check_whole

USED = (*MOVES, "autocontrast", "equalize", "posterize", "solarize")
"""Those that are no test corruption."""
_CHAINS = 3
_PLACES = np.array([OPERATIONS.index(name) for name in USED])


@dataclass(frozen=True)
class AugMix:
    """What is done to images `[B, C, H, W]` in [0, 1], in the place of `Augmentation`.

    depth: the most operations of each of the three chains. magnitude: of every operation, 0 to 30
    as in RandAugment, whose operations these are (the paper draws it anew each time, 1.5 of 10 on
    average). crop, flip: first, as in `Augmentation`.

    Raises UsageError for numbers out of range.
    """

    depth: int = 3
    magnitude: int = 5
    crop: int = 0
    flip: float = 0.0
    turn: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_whole("augmentation.depth", self.depth, 1)
        check_whole("augmentation.crop", self.crop)
        if not 0 <= self.flip <= 1:
            raise UsageError(f"augmentation: flip={self.flip} must be 0 to 1")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            told = f"magnitude={self.magnitude} must be 0 to {MAX_MAGNITUDE}"
            raise UsageError(f"augmentation: {told}")

    @property
    def randaugment(self) -> int:
        """How many operations an image draws."""
        return _CHAINS * self.depth

    def check(self, shape: Sequence[int]) -> None:
        """Raise UsageError where images of `shape` (C, H, W) cannot be changed so."""
        if shape[0] not in (1, 3):
            raise UsageError(f"augmentation: AugMix takes 1 or 3 channels, not {shape[0]}")

    def __call__(
        self, x: Tensor, turns: Tensor, numbers: Tensor, draws: np.ndarray | None = None
    ) -> Tensor:
        """A changed copy of `x`. numbers, draws: as `Augmentation` takes them."""
        assert draws is not None, "AugMix needs draws"
        if self.crop or self.flip:
            x = crop_and_flip(x, self.crop, numbers[:, 0:2], numbers[:, 2] < self.flip)
        host = numbers.cpu().numpy()
        shares = -torch.log1p(-numbers[:, 3:6])  # exponential: Dirichlet(1) once they are scaled
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
        mixed = torch.zeros_like(x)
        for chain in range(_CHAINS):
            deep = (host[:, 6 + chain] * self.depth).astype(np.int64)  # and one more
            changed = x
            for place in range(self.depth):
                draw = draws[chain * self.depth + place]
                which = _PLACES[(draw[:, 0] * len(_PLACES)).astype(np.int64)]
                which = np.where(place <= deep, which, 0)
                signs = np.where(draw[:, 1] < 0.5, -1, 1)
                changed = apply_operations(changed, which, signs, self.magnitude)
            mixed += shares[:, chain].view(-1, 1, 1, 1) * changed
        return torch.lerp(x, mixed, numbers[:, 9].view(-1, 1, 1, 1))
