"""What a folder keeps of the classes that it was made for: their shots, and the calibration."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from metalearn.data.own_images import OwnClasses, OwnImages
from metalearn.errors import UsageError
from metalearn.evaluation.own_images.calibration import Calibration
from metalearn.evaluation.report import write_json
from metalearn.runtime.files import write_atomic

_PIXELS, _NAMES = "support.safetensors", "support.json"


class Kept(NamedTuple):
    """The support set, and what held-out shots of it said of the confidence."""

    classes: OwnClasses
    calibration: Calibration | None


def write_kept(run: Path, kept: Kept) -> None:
    """Into the folder `run`, whatever of it was there."""
    own, found = kept
    tensors = {
        "pixels": torch.from_numpy(own.images.pixels),
        "labels": torch.from_numpy(own.labels),
    }
    write_atomic(run / _PIXELS, save(tensors))
    told = {
        "classes": own.classes,
        "files": own.images.names,
        "sha256": own.images.digests,
        "white": own.images.white,
        "calibration": found and found._asdict(),
    }
    write_json(run / _NAMES, told)


def read_kept(run: Path) -> Kept | None:
    """From the folder `run`; None where nothing is kept. Raises UsageError where it is damaged."""
    if not (run / _NAMES).exists():
        return None
    try:
        told = json.loads((run / _NAMES).read_text(encoding="utf-8"))
        tensors = load((run / _PIXELS).read_bytes())
        pixels, labels = tensors["pixels"].numpy(), tensors["labels"].numpy()
        names, digests = list(told["files"]), list(told["sha256"])
        if not len(names) == len(digests) == len(pixels) == len(labels):
            raise ValueError("their numbers differ")
        images = OwnImages(names, pixels, digests, [], told["white"])
        found = told["calibration"] and Calibration(**told["calibration"])
        return Kept(OwnClasses(list(told["classes"]), labels, images, []), found)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{run / _NAMES} or {_PIXELS} is damaged ({reason}); give support=<folder of class "
            "folders>, or make the folder anew"
        ) from None
