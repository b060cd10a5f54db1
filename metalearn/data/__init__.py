"""Data sets decoded once into memory-mapped arrays, with their splits."""

from collections.abc import Callable

from metalearn.data.dataset import Classes, ImageDataset
from metalearn.data.glyphs import glyphs
from metalearn.data.omniglot import omniglot
from metalearn.data.paths import cache_folder, data_folder
from metalearn.data.sinusoid import Sinusoid
from metalearn.data.store import ImageStore
from metalearn.errors import DataError

DATASETS: dict[str, Callable[..., ImageDataset | Sinusoid]] = {
    "glyphs": glyphs,
    "omniglot": omniglot,
    "sinusoid": Sinusoid,
}

__all__ = [
    "DATASETS",
    "Classes",
    "DataError",
    "ImageDataset",
    "ImageStore",
    "Sinusoid",
    "cache_folder",
    "data_folder",
    "glyphs",
    "omniglot",
]
