"""MNIST (LeCun et al. 1998) and the sets in its form: ten classes or 47, 28x28 in grey.

torchvision downloads them, compares checksums and reads the files. Fashion-MNIST: Xiao et al.
2017. KMNIST: Clanuwat et al. 2018. EMNIST: Cohen et al. 2017.
"""

import contextlib
import http.client
import io
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from metalearn.data.class_splits import by_fractions
from metalearn.data.dataset import ImageDataset
from metalearn.data.image_files import pixels
from metalearn.data.paths import Source, check_size, data_folder, stored
from metalearn.data.store import ImageStore, build_store
from metalearn.errors import DataError

VERSION = 1  # raise it whenever a change below changes a pixel
SIDE = 28
KINDS = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST", "emnist": "EMNIST"}
"""torchvision's class of each variant, and its folder."""
SOURCE = Source("download", f"mnist-v{VERSION}", [f"{kind}/raw" for kind in KINDS.values()])
# What torchvision lets through of a network, an archive or a file that is not as it should be.
MISTAKES = (
    *(RuntimeError, OSError, ValueError, TypeError, AssertionError, EOFError),
    *(http.client.HTTPException, zipfile.BadZipFile, zlib.error),
)


def mnist(
    root: Path | None = None,
    archive: Path | None = None,
    variant: Literal["mnist", "fashion", "kmnist", "emnist"] = "mnist",
    size: int = 28,
    fractions: Sequence[float] = (0.4, 0.3, 0.3),
    seed: int = 0,
) -> ImageDataset:
    """All training and test images of `variant` at [1, size, size], ink = 255; EMNIST's balanced
    part, upright.

    `seed` shuffles the classes and `fractions` cuts them into train, val and test: [0, 0, 1] for
    a set that is only tested on. archive: a folder that holds `MNIST/raw/` (`FashionMNIST/raw/`,
    ...). By default the data folder, else `root` (the cache folder), else the files are downloaded
    to `root`; what is decoded stays there. Raises DataError where they cannot be had or read.
    """
    if variant not in KINDS:
        raise DataError(f"mnist: variant must be {', '.join(KINDS)}, not {variant!r}")
    check_size("mnist", size)
    name, found = f"{SOURCE.store}-{variant}-{size}px", partial(find_files, KINDS[variant])
    store = stored(root, name, archive, found, partial(decode, variant=variant, size=size))
    return ImageDataset(variant, store, by_fractions(store.name, store.classes, fractions, seed))


def find_files(kind: str, root: Path) -> Path:
    """Where `<kind>/raw/` lies: in the data folder, else `root`, downloaded before or now."""
    for place in (data_folder(), root):
        if place is not None and (place / kind / "raw").is_dir():
            return place
    by_hand = f"put it by hand at {kind}/raw/ in a folder named by METALEARN_DATA"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # torchvision takes a file that is there for a whole one, so it is there only once whole.
        with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as work, _quiet():
            _torchvision(kind, Path(work), train=True, download=True)
            os.rename(Path(work) / kind, root / kind)
    except MISTAKES as error:
        if (root / kind / "raw").is_dir():  # another process was first
            return root
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot download {kind} ({reason}); {by_hand}") from None
    return root


def decode(place: Path, folder: Path, variant: str, size: int) -> ImageStore:
    """Build the store from `<kind>/raw/` in `place`, training images before test images."""
    kind = KINDS[variant]
    try:
        parts = [_torchvision(kind, place, train) for train in (True, False)]
        images = np.concatenate([part.data.numpy() for part in parts])
        labels = np.concatenate([part.targets.numpy() for part in parts])
    except MISTAKES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {place / kind} ({reason}); mend or remove it") from None
    names = parts[0].classes
    if images.shape != (len(labels), SIDE, SIDE) or set(labels.tolist()) != set(range(len(names))):
        raise DataError(
            f"{place / kind} holds other images or labels than {kind}'s {len(names)} classes of "
            f"{SIDE}x{SIDE}; mend or remove it"
        )
    if variant == "emnist":
        images = images.transpose(0, 2, 1)  # its files hold columns for rows
    blocks = (
        np.stack([pixels(Image.fromarray(image), size, 1) for image in images[labels == c]])
        for c in range(len(names))
    )
    return build_store(folder, variant, names, blocks)


def _torchvision(kind: str, place: Path, train: bool, download: bool = False) -> Any:
    """torchvision's data set; raises one of MISTAKES."""
    from torchvision import datasets  # slow to import, and needed once

    part = {"split": "balanced"} if kind == "EMNIST" else {}
    return getattr(datasets, kind)(place, train=train, download=download, **part)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Keep torchvision's progress bar to terminals."""
    if sys.stderr.isatty():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())
