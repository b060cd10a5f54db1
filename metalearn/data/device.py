"""The images of a store on a device, so that a batch moves only its index numbers there."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metalearn.data.store import ImageStore

_ROWS = 4096  # images copied at a time


class DeviceImages:
    """Every image of `store` in each of `rotations` (quarter turns, ascending), uint8 on `device`.

    The rotated images are stored, so that a batch is one gather.
    """

    def __init__(self, store: ImageStore, rotations: Sequence[int], device: torch.device):
        count, height, width, channels = store.images.shape
        shape = len(rotations), count, channels, height, width
        held = torch.empty(shape, dtype=torch.uint8, device=device)
        for start in range(0, count, _ROWS):
            rows = slice(start, start + _ROWS)
            part = np.array(store.images[rows].transpose(0, 3, 1, 2), order="C")
            images = torch.from_numpy(part).to(device)
            for place, quarters in enumerate(rotations):
                held[place, rows] = torch.rot90(images, quarters, (2, 3)) if quarters else images
        self._rotations = np.asarray(rotations)
        self._count = count
        self._images = held.flatten(0, 1)

    def gather(self, rows: np.ndarray, rotations: np.ndarray) -> Tensor:
        """Images `rows` (int, any shape) of the store, each rotated: uint8 [..., C, H, W].

        Neither number is checked. The host does not wait for the device.
        """
        numbers = np.searchsorted(self._rotations, rotations) * self._count + rows
        index = torch.from_numpy(numbers.reshape(-1))
        if self._images.is_cuda:
            index = index.pin_memory()
        index = index.to(self._images.device, non_blocking=True)
        found = self._images.index_select(0, index)
        return found.view(*numbers.shape, *found.shape[1:])
