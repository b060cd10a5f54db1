"""Data sets decoded once into memory-mapped arrays, with their splits."""

from collections.abc import Callable

from .dataset import Classes, ImageDataset
from .errors import DataError
from .glyphs import glyphs
from .omniglot import omniglot
from .paths import cache_folder, data_folder
from .sinusoid import Sinusoid
from .store import ImageStore

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
