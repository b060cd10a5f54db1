"""A few examples of a data set: enough to rank networks by."""

import hashlib
from dataclasses import replace

import numpy as np
import torch

from metalearn.data import ImageDataset, ImageStore, TensorDataset
from metalearn.data.class_splits import shuffled
from metalearn.data.dataset import SPLITS, without_rotations
from metalearn.errors import UsageError
from metalearn.types import map_tensors


def sample(
    dataset: ImageDataset | TensorDataset, split: str, classes: int, images: int, seed: int
) -> ImageDataset | TensorDataset:
    """At most `classes` classes of `split` and `images` examples of each, drawn by `seed`; the
    other splits have none. Raises UsageError where there are fewer than two classes."""
    if split not in SPLITS:
        raise UsageError(f"split={split} is not known; use {', '.join(SPLITS)}")
    sizes = dataset.sizes[split]
    if len(sizes) < 2:
        raise UsageError(
            f"{dataset.name} has {len(sizes)} classes in its {split} split, and selection needs "
            "two; use another split"
        )
    chosen = np.sort(shuffled(len(sizes), seed)[:classes])
    each = [np.sort(shuffled(int(sizes[c]), seed)[:images]) for c in chosen]
    numbers, of = np.concatenate(each), np.repeat(chosen, [len(some) for some in each])
    places = np.repeat(np.arange(len(chosen)), [len(some) for some in each])
    if isinstance(dataset, TensorDataset):
        x, targets = dataset.examples(split, of, numbers)
        splits = {name: range(len(chosen)) if name == split else () for name in SPLITS}
        labels = torch.from_numpy(places)
        x = map_tensors(torch.Tensor.contiguous, x)
        return replace(dataset, x=x, classes=labels, targets=targets, splits=splits)
    pixels = dataset.images(split, of, numbers).transpose(0, 2, 3, 1)
    total = hashlib.sha256(f"{dataset.digest} {split}".encode())
    total.update(of.tobytes() + numbers.tobytes())
    names = dataset.class_names(split)
    offsets = np.concatenate([[0], np.cumsum([len(some) for some in each])])
    store = ImageStore(
        dataset.name,
        np.ascontiguousarray(pixels),
        tuple(names[c] for c in chosen),
        offsets,
        total.hexdigest(),
    )
    none = without_rotations(np.array([], np.int64))
    every = without_rotations(np.arange(len(chosen)))
    return ImageDataset(dataset.name, store, {n: every if n == split else none for n in SPLITS})
