"""Weights from files, read without running code from them.

A file may be `.safetensors`, or what `torch.save` wrote, which is read with `weights_only=True`.
A run folder of metalearn's stands for the weights in it.
"""

import argparse
import hashlib
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metalearn.errors import UsageError, reason_of
from metalearn.functional.masks import MASK
from metalearn.runtime.files import packaged
from metalearn.types import Params

FILES = ("backbone.safetensors", "weights.safetensors")
"""What a run folder of `pretrain` and of `train` holds."""

_KINDS = ("*.safetensors", "*.pth", "*.pt", "*.th")

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What torch's compiled, sharded and checkpointed modules put into the names of their weights."""

# Plain values that training scripts keep beside the weights: timm's and DINO's `args`, a best
# accuracy of NumPy's, under both of the names that its versions gave the function, Lightning's
# hyperparameters and folders.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_ARRAY: Any = np.zeros(1).__reduce__()[0]
_LIGHTNING = (
    "lightning.fabric.utilities.data",
    "lightning_fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "u1", "i4", "i8", "?")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((OrderedDict, f"{module}.AttributeDict") for module in _LIGHTNING),
    *(
        (PureWindowsPath if "Windows" in name else PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
]


class Weights(NamedTuple):
    """Tensors of a network, and what is known of them.

    tensors: under the names of the file; of a dict within a dict the names are joined by dots.
    source: where they come from, in words. sha256: of the file. images: what the network was
    trained to see, as far as it is known: `size`, `channels`, `mean` and `std`, as
    `ImageTransform` takes them. told: all that a run of `pretrain` says of them. form: how they
    were read: "safetensors", "weights-only" (torch's, without running code), by a "library".
    """

    tensors: Params
    source: str
    sha256: str | None = None
    images: Mapping[str, Any] = {}
    told: Mapping[str, Any] = {}
    form: str = "library"


def read_weights(path: str | Path, sha256: str | None = None) -> Weights:
    """The weights in `path`: a `.safetensors`, `.pth`, `.pt` or `.th` file, a run folder, or the
    name of an installed package with one such file in it.

    sha256: what the file must have, or its first 8 digits or more.

    Raises UsageError where there is none, where its sha256 is another, or where it holds more than
    tensors and plain values; nothing in it is executed.
    """
    given, path = Path(path), Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UsageError(f"{given} holds no {' or '.join(FILES)}; has that run finished?")
        path = found[0]
    if not path.exists() and (found := packaged(str(given), *_KINDS)):
        if len(found) > 1:
            several = " or ".join(file.name for file in found[:3])
            raise UsageError(f"the package {given} holds {several}; give backbone.weights=<file>")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"no weights at {given}; correct backbone.weights")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({reason_of(error)})") from None
    check_pin(str(given), digest, sha256)
    if path.suffix == ".safetensors":
        (tensors, told), form = _safetensors(path), "safetensors"
    else:
        tensors, told, form = _pickled(path), {}, "weights-only"
    if not tensors:
        raise UsageError(f"{given} holds no tensors; give a state dict")
    return Weights(tensors, str(given), digest, told.get("images") or {}, told, form)


def check_pin(source: str, digest: str | None, pin: str | None) -> None:
    """Raise UsageError where `digest` does not begin with `pin`, of 8 digits or more."""
    if pin is None:
        return
    if digest is None:
        raise UsageError(f"{source} come without a sha256; leave out backbone.sha256")
    if len(pin) < 8 or not digest.startswith(pin.lower()):
        raise UsageError(f"{source} has sha256 {digest}, not {pin}; correct backbone.sha256")


def _safetensors(path: Path) -> tuple[Params, dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); fetch or train it anew") from None
    try:
        told = json.loads(metadata.get("metalearn", "{}"))
    except ValueError:
        told = {}  # of another's by that name
    # `save_model` of safetensors writes a tensor of two names once, and the other name here.
    for name, kept in metadata.items():
        if kept in tensors and name not in tensors:
            tensors[name] = tensors[kept]
    # A run folder of `train` keeps a whole `Meta`.
    parts = {name: name.partition("/") for name in tensors}
    if all(part in ("init", "hyper", "buffers") and slash for part, slash, _ in parts.values()):
        masks = f"buffers/{MASK}"  # what they prune is 0 already
        tensors = {
            parts[n][2]: t
            for n, t in tensors.items()
            if parts[n][0] != "hyper" and not n.startswith(masks)
        }
    return _flat(tensors), told if isinstance(told, dict) else {}


def _pickled(path: Path) -> Params:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        more = f" ({asked[1]})" if asked else ", or is damaged"
        raise UsageError(
            f"{path} holds more than tensors and plain values{more}; "
            "save its state_dict() alone, best as .safetensors"
        ) from None
    except Exception as error:  # what a damaged file raises is for its bytes to choose
        raise UsageError(f"{path} cannot be read ({reason_of(error)}); fetch it anew") from None
    return {} if isinstance(held, Tensor) else _flat(held)


def _flat(held: Any, before: tuple[str, ...] = ()) -> Params:
    """Every tensor in `held`, however deep, under the dotted path to it."""
    if isinstance(held, Tensor):
        return {".".join(before): held}
    flat: Params = {}
    for name, part in _parts(held):
        words = [word for word in str(name).split(".") if word not in _WRAPPERS]
        for path, tensor in _flat(part, (*before, *words)).items():
            flat.setdefault(path, tensor)
    return flat


def _parts(held: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(held, Mapping):
        return held.items()
    return enumerate(held) if isinstance(held, list | tuple) else ()
