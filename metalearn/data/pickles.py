"""Pickles of arrays, read without running them: nothing but arrays, lists, dicts, text, numbers.

Among them are the sets that others share as three pickles: MetaOptNet's
(`CIFAR_FS_train.pickle`: `{"data": images, "labels": [...]}`) and mini-ImageNet's
(`mini-imagenet-cache-train.pkl`: `{"image_data": images, "class_dict": {name: [rows]}}`).
"""

import codecs
import collections
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from metalearn.data.dataset import SPLITS
from metalearn.data.files import PICKLES, Files
from metalearn.data.layout import named
from metalearn.errors import DataError

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")
_MADE: dict[str, Any] = {"list": list, "dict": dict, "set": list}
_KINDS = "biufSU"
# MetaOptNet's other images of the classes that train.
_PHASE = re.compile(r"train_phase_(val|test)$")


def read(file: BinaryIO, encoding: str = "latin1") -> Any:
    """What a pickle holds. Raises an error of any kind for a damaged one, and UnpicklingError for
    one that asks for anything but data.

    encoding: of what was text in Python 2, or "bytes".
    """
    return _plain(_Reader(file, encoding=encoding).load())


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = {
            **{(numpy, "_reconstruct"): lambda *_: _Array() for numpy in _NUMPY},
            **{(numpy, "scalar"): _scalar for numpy in _NUMPY},
            **{(numpy, "_frombuffer"): _from_buffer for numpy in _NUMERIC},
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
            ("_codecs", "encode"): _encode,  # what bytes are in protocols 0 to 2
            ("collections", "OrderedDict"): dict,
            ("collections", "defaultdict"): lambda *_: collections.defaultdict(),
            **{(builtins, name): made for builtins in _BUILTINS for name, made in _MADE.items()},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


class _Kind:
    """In the place of numpy's dtype, whose own state can name memory that is not there."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        self.objects = code in ("O", "O8", "O4", "|O", "object")
        if not self.objects and not re.fullmatch(rf"[<>=|]?[{_KINDS}]\d+", code):
            raise pickle.UnpicklingError(f"it has an array of {code!r}")
        self.code, self.order = code.lstrip("<>=|"), code[0] if code[0] in "<>" else ""

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.order = order if order in ("<", ">") else ""

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """In the place of numpy's array, while it is read."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        if kind.objects:
            self.value = list(content)
            return
        if isinstance(content, str):  # bytes of Python 2, read as latin1
            content = content.encode("latin1")
        self.value = _shaped(content, kind.dtype, shape, "F" if by_columns else "C")


def _shaped(content: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(tuple(shape), order=order)


def _from_buffer(content: Any, kind: _Kind, shape: Any, order: str, *_: Any) -> _Array:
    array = _Array()
    array.value = _shaped(content, kind.dtype, shape, order)
    return array


def _scalar(kind: _Kind, content: bytes | str) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, kind.dtype)[0].item()


def _encode(content: str, encoding: str = "utf-8") -> bytes:
    if codecs.lookup(encoding).name not in ("iso8859-1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return content.encode(encoding)


def _plain(value: Any, depth: int = 8) -> Any:
    """`value` with arrays as numpy's, in dicts and lists too."""
    if isinstance(value, _Array):
        return value.value if isinstance(value.value, np.ndarray) else _plain(value.value, depth)
    if isinstance(value, dict) and depth:
        return {_plain(key, depth - 1): _plain(one, depth - 1) for key, one in value.items()}
    nested = isinstance(value, list | tuple) and bool(value) and depth > 0
    if nested and isinstance(value[0], _Array | dict | list | tuple):
        return [_plain(one, depth - 1) for one in value]
    return value


def find(names: Sequence[str]) -> dict[str, str] | None:
    """By split, the pickle that holds it; None where not all three are there."""
    stems = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix.lower() in PICKLES and not _PHASE.search(path.stem):
            stems[re.sub(r"_category_split|_phase_train$", "", path.stem)] = name
    split = {owner: stems[stem] for stem, owner in named(stems).items()}
    return split if set(split) == set(SPLITS) else None


def images(files: Files, packed: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The images of every class of the three pickles, uint8 `[n, H, W, C]`, by `train/<class>` and
    so on, in that order. Raises DataError for one that is damaged, asks for more than data or is
    of another layout, and for a class in two of them."""
    found: dict[str, np.ndarray] = {}
    owner: dict[str, str] = {}
    for split in sorted(packed):
        told = f"{packed[split]} in {files.path}"
        with files.open(packed[split]) as file:
            try:
                content = read(file)
            except Exception as error:  # whatever a spoilt pickle makes of it
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DataError(
                    f"{told} is refused ({reason}); put a good copy in its place, or write its "
                    "images into a folder for each class"
                ) from None
        for name, own in classes_of(content, told).items():
            # Numbers may begin anew in every file.
            if not name.isdecimal() and owner.setdefault(name, split) != split:
                raise DataError(
                    f"class {name} of {files.path} is in both {owner[name]} and {split}; few-shot "
                    "splits have different classes"
                )
            found[f"{split}/{name}"] = own
    return found


def classes_of(content: Any, told: str) -> Mapping[str, np.ndarray]:
    """The images of every class, uint8 `[n, H, W, C]`, in the order of their names.

    Raises DataError for a pickle of another layout.
    """
    table = {_text(k): v for k, v in content.items()} if isinstance(content, dict) else {}
    images, labels = table.get("data", table.get("image_data")), table.get("labels")
    rows: dict[str, Any] = {}
    if isinstance(table.get("class_dict"), dict):
        rows = {_text(name): np.asarray(own) for name, own in table["class_dict"].items()}
    elif isinstance(labels, list | np.ndarray):
        flat = labels.ravel().tolist() if isinstance(labels, np.ndarray) else labels
        every = np.asarray([_text(label) for label in flat])
        rows = {str(label): np.flatnonzero(every == label) for label in np.unique(every)}
    images = _as_images(images)
    count = 0 if images is None else len(images)
    fit = all(
        r.ndim == 1 and r.dtype.kind in "iu" and len(r) and r.min() >= 0 and r.max() < count
        for r in rows.values()
    )
    if images is None or not rows or not fit:
        raise DataError(
            f"{told} holds {_kind(content)}, not data and labels, or image_data and class_dict, of "
            "images of 8 bits; write them as images into a folder for each class"
        )
    width = max(map(len, rows)) if all(name.isdecimal() for name in rows) else 0
    order = sorted(rows, key=lambda name: (len(name) if name.isdecimal() else 0, name))
    return {name.zfill(width): images[rows[name]] for name in order}


def _as_images(images: Any) -> np.ndarray | None:
    if isinstance(images, list) and images and isinstance(images[0], np.ndarray):
        same = {getattr(image, "shape", None) for image in images}
        images = np.stack(images) if len(same) == 1 else None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim not in (3, 4):
        return None
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    return images if images.shape[-1] in (1, 3) and min(images.shape) else None


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(sorted(map(_text, content))[:4]) or 'nothing'}"
    return f"a {type(content).__name__}"
