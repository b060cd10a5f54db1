"""Data sets decoded once into memory-mapped arrays, with their splits."""

from metalearn.data.cifar import cifar_fs, fc100
from metalearn.data.cub import cub
from metalearn.data.dataset import Classes, ImageDataset
from metalearn.data.folder import folder
from metalearn.data.glyphs import glyph_scenes, glyphs
from metalearn.data.harmonic import Harmonic
from metalearn.data.intents import intents
from metalearn.data.mini_imagenet import mini_imagenet
from metalearn.data.mixture import Mixture
from metalearn.data.mnist import mnist
from metalearn.data.omniglot import omniglot
from metalearn.data.paths import data_folder
from metalearn.data.sinusoid import Sinusoid
from metalearn.data.store import ImageStore
from metalearn.data.tensors import TensorDataset
from metalearn.data.tiered_imagenet import tiered_imagenet
from metalearn.data.tiny_imagenet import tiny_imagenet
from metalearn.errors import DataError
from metalearn.runtime.files import cache_folder

__all__ = [
    "Classes",
    "DataError",
    "Harmonic",
    "ImageDataset",
    "ImageStore",
    "Mixture",
    "Sinusoid",
    "TensorDataset",
    "cache_folder",
    "cifar_fs",
    "cub",
    "data_folder",
    "fc100",
    "folder",
    "glyph_scenes",
    "glyphs",
    "intents",
    "mini_imagenet",
    "mnist",
    "omniglot",
    "tiered_imagenet",
    "tiny_imagenet",
]
