"""The device that a run uses, and how much memory it took at most."""

import resource
import sys
from pathlib import Path

import torch

from metalearn.errors import UsageError


def torch_device(name: str) -> torch.device:
    """The device for `device=`: "auto" is the GPU where there is one. Raises UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device={name!r} is not known; use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={name!r} is not known; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={name}, but no CUDA device is visible; use device=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={name}, but the last is cuda:{torch.cuda.device_count() - 1}")
    return device


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew, where the system can: an earlier run of this process does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """The allocator's peak on a CUDA device, else the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _CLEAR.exists():
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_CLEAR = Path("/proc/self/clear_refs")
