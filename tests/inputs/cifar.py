"""Small archives in the two layouts of CIFAR-100."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, EXAMPLES = ["apple", "bee", "cup"], 4


def images() -> np.ndarray:
    """uint8 [classes, examples, 32, 32, 3]."""
    shape = (len(CLASSES), EXAMPLES, 32, 32, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def name(c: int, e: int) -> str:
    return f"{CLASSES[c]}_s_{7 * e % 4:06d}.png"


def zipped(path: Path, side: int = 32, skip: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for c in range(len(CLASSES)):
            for e in range(EXAMPLES - (skip if c == 1 else 0)):
                out = io.BytesIO()
                Image.fromarray(images()[c, e][:side]).save(out, "PNG")
                file.writestr(f"cifar100/data/{CLASSES[c]}/{name(c, e)}", out.getvalue())
    return path


class Python2:
    """Pickles as Python 2 wrote them in 2009, protocol 2: its `str` is what is bytes now."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")

    def text(self, value: bytes) -> None:
        short = len(value) < 256
        self.out += b"U" + bytes([len(value)]) if short else b"T" + len(value).to_bytes(4, "little")
        self.out += value

    def number(self, value: int) -> None:
        self.out += b"J" + value.to_bytes(4, "little", signed=True)

    def save(self, value: object) -> None:
        match value:
            case bytes():
                self.text(value)
            case int():
                self.number(value)
            case list():
                self.out += b"]("
                for part in value:
                    self.save(part)
                self.out += b"e"
            case dict():
                self.out += b"}("
                for pair in value.items():
                    for part in pair:
                        self.save(part)
                self.out += b"u"
            case np.ndarray():
                self.array(value)

    def array(self, value: np.ndarray) -> None:
        self.out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        self.number(0)
        self.out += b"\x85"
        self.text(b"b")
        self.out += b"\x87R("
        self.number(1)
        self.out += b"("
        for size in value.shape:
            self.number(size)
        self.out += b"tcnumpy\ndtype\n"
        self.text(b"u1")
        self.number(0)
        self.number(1)
        self.out += b"\x87R("
        self.number(3)
        self.text(b"|")
        self.out += b"NNN"
        for flag in (-1, -1, 0):
            self.number(flag)
        self.out += b"tb\x89"
        self.text(value.tobytes())
        self.out += b"tb"

    @staticmethod
    def dumps(value: object) -> bytes:
        writer = Python2()
        writer.save(value)
        return bytes(writer.out + b".")


def official(path: Path, **instead: bytes | None) -> Path:
    """A tar as the data set's site has it, its images dealt to train and test."""
    places = [(c, e) for e in range(EXAMPLES) for c in range(len(CLASSES))]
    flat = images().transpose(0, 1, 4, 2, 3).reshape(len(CLASSES), EXAMPLES, 3072)

    def batch(part: list[tuple[int, int]]) -> bytes:
        return Python2.dumps(
            {
                b"filenames": [name(c, e).encode() for c, e in part],
                b"fine_labels": [c for c, _ in part],
                b"coarse_labels": [0 for _ in part],
                b"data": np.stack([flat[c, e] for c, e in part]),
            }
        )

    members: dict[str, bytes | None] = {
        "meta": Python2.dumps({b"fine_label_names": [c.encode() for c in CLASSES]}),
        "train": batch(places[:8]),
        "test": batch(places[8:]),
        "file.txt~": b"",
        **instead,
    }
    with tarfile.open(path, "w:gz") as file:
        for member, content in members.items():
            if content is not None:
                info = tarfile.TarInfo(f"cifar-100-python/{member}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


class Evil:
    """Pickled, it makes the folder that EVIL names as soon as it is read."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["EVIL"],)
