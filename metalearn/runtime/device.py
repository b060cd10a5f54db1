"""Which device a run uses."""

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
