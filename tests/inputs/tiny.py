"""A Tiny-ImageNet of two pictures."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from metalearn.data.class_splits import listed

LISTS = listed("tiny_imagenet")
EVERY = sorted(sum(LISTS.values(), []))
FIRST = LISTS["test"][0]


def jpeg(red: int, side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (red, 0, 0)).save(file, "JPEG", quality=95)
    return file.getvalue()


PICTURES = [jpeg(40), jpeg(200)]


def made(path: Path, change: Callable[[dict[str, bytes]], object] = lambda files: None) -> Path:
    """The layout of `tiny-imagenet-200.zip`, of two images a class and 17 of the first."""
    files: dict[str, bytes] = {"tiny-imagenet-200/wnids.txt": b""}
    for wnid in [*EVERY, "n99999999"]:
        here, lines = f"tiny-imagenet-200/train/{wnid}", []
        for i in range(17 if wnid == FIRST else 2):
            files[f"{here}/images/{wnid}_{i}.JPEG"] = PICTURES[i % 2]
            lines.append(f"{wnid}_{i}.JPEG\t{i}\t2\t{i + 9}\t2\n")
        files[f"{here}/{wnid}_boxes.txt"] = "".join(lines).encode()
    files["tiny-imagenet-200/val/images/val_0.JPEG"] = PICTURES[0]
    files["tiny-imagenet-200/val/val_annotations.txt"] = b"val_0.JPEG\tn99999999\t0\t0\t9\t9\n"
    change(files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def table(line: bytes, wnid: str = FIRST) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.update(
        {f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt": line + b"\n"}
    )


def without(*parts: str) -> Callable[[dict[str, bytes]], object]:
    return lambda files: [files.pop(n) for n in list(files) if all(part in n for part in parts)]
