"""Zips as Omniglot's, tars, and class folders with pictures."""

import io
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def drawing(seed: int, side: int = 105) -> bytes:
    """A one-bit PNG as Omniglot's: black ink on white."""
    paper = np.random.default_rng(seed).random((side, side)) > 0.1
    out = io.BytesIO()
    Image.fromarray(paper).save(out, "PNG")
    return out.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header says that it is larger."""
    png = bytearray(drawing(0))
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def omniglot_zip(
    path: Path,
    characters: int = 2,
    extra: Mapping[str | zipfile.ZipInfo, bytes] | None = None,
    side: int = 105,
    first: bytes | None = None,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """`images_background.zip` with `characters` x 20 drawings and whatever is `extra`.

    `first` takes the place of the first drawing.
    """
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        for c in range(1, characters + 1):
            for d in range(1, 21):
                name = f"images_background/Tiny/character{c:02d}/{c:04d}_{d:02d}.png"
                content = first if first and c == d == 1 else drawing(100 * c + d, side)
                file.writestr(name, content)
        for name, content in (extra or {}).items():
            file.writestr(name, content)
    return path


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_images(root: Path, *labels: str, count: int = 3, size: tuple[int, int] = (12, 8)) -> Path:
    """`count` colour pictures in every folder of `labels`."""
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = (40 * number % 256, 50 * i, 100)
            Image.new("RGB", size, colour).save(root / label / f"{i}.png")
    return root


def damage(root: Path) -> None:
    (root / "cow" / "1.png").write_bytes(b"\x89PNG nothing")


def cut(root: Path) -> None:
    file = root / "cow" / "1.png"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:900])


def loose(root: Path) -> None:
    shutil.move(root / "cow" / "1.png", root / "1.png")


def unreadable(root: Path) -> None:
    (root / "cow" / "1.png").unlink()
    os.symlink(root / "nowhere.png", root / "cow" / "1.png")


def vast(root: Path) -> None:
    (root / "cow" / "1.png").write_bytes(png_claiming(40_000, 40_000))
