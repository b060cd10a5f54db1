"""How much memory this process took at most."""

import resource
import sys

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The allocator's peak on a CUDA device, else the largest resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
