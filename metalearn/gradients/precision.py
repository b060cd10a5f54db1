"""What the numbers of a meta-gradient are computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

from metalearn.errors import UsageError


def check_precision(precision: str) -> None:
    """Raise UsageError for a precision that is unknown or not there yet."""
    if precision != "fp32":
        known = precision in ("tf32", "bf16", "fp16")
        fault = "is not there yet" if known else "is not known"
        raise UsageError(f"precision={precision!r} {fault}; use precision='fp32'")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, float32 convolutions on a CUDA device are float32, not torch's default TF32."""
    if device.type != "cuda":
        yield
        return
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before
