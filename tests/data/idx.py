"""Small files in MNIST's form, where torchvision looks for them."""

import struct
from pathlib import Path

import numpy as np


def idx(array: np.ndarray) -> bytes:
    """uint8, of any number of axes, as an IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write(place: Path, images: np.ndarray, labels: np.ndarray, kind: str = "MNIST") -> Path:
    """uint8 [n, 28, 28] and labels [n], the first half to train, the second to test."""
    raw = place / kind / "raw"
    raw.mkdir(parents=True)
    half = len(labels) // 2
    start = "emnist-balanced-" if kind == "EMNIST" else ""
    for part, rows in (("train", slice(half)), ("test", slice(half, None))):
        name = start + ("t10k" if part == "test" and not start else part)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images[rows]))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels[rows].astype(np.uint8)))
    return raw
