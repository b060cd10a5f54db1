"""Which device a run uses."""

import functools
import os
import platform
from pathlib import Path

import torch

from metalearn.errors import UsageError


def torch_device(name: str) -> torch.device:
    """The device for `device=`: "auto" is the GPU where there is one. Of several processes that
    torchrun started each has a GPU of its own. Raises UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    if rank is not None and name.startswith("cuda") and torch.cuda.is_available():
        if name != "cuda":
            raise UsageError(f"device={name} is one GPU for all ranks; use device=cuda or auto")
        if int(rank) >= (count := torch.cuda.device_count()):
            raise UsageError(
                f"torchrun started more processes here than the {count} GPUs; use "
                f"--nproc-per-node={count}, or device=cpu"
            )
        torch.cuda.set_device(int(rank))
        name = f"cuda:{rank}"
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


@functools.cache
def processor_model() -> str:
    """What tells this processor from others: its name, family, model and stepping, and the vector
    instructions that torch takes there."""
    told: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    names = ("vendor_id", "model name", "cpu family", "model", "stepping")
    parts = [told[name] for name in names if name in told]
    return " ".join([*(parts or [platform.processor()]), torch.backends.cpu.get_cpu_capability()])
