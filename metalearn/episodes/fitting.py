"""Images of one shape as images of another, the whole batch at once."""

import torch.nn.functional as F
from torch import Tensor

from metalearn.errors import UsageError


def fitted(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images `[B, c, h, w]` at `shape` (C, H, W): resized bilinearly, with antialiasing, a grey
    channel repeated. Raises UsageError where colours would be lost."""
    channels, height, width = shape
    if x.shape[1] not in (1, channels):
        raise UsageError(f"images of {x.shape[1]} channels do not fit into {channels}; use 3")
    if x.shape[2:] != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    return x.expand(-1, channels, -1, -1)
