"""Which data sets are on this machine."""

from metalearn.data.cifar import SOURCE as CIFAR
from metalearn.data.cub import SOURCE as CUB
from metalearn.data.glyphs import SOURCE as GLYPHS
from metalearn.data.intents import SOURCE as INTENTS
from metalearn.data.mini_imagenet import SOURCE as MINI_IMAGENET
from metalearn.data.mnist import SOURCE as MNIST
from metalearn.data.omniglot import SOURCE as OMNIGLOT
from metalearn.data.paths import Source, data_folder
from metalearn.data.tiered_imagenet import SOURCE as TIERED_IMAGENET
from metalearn.data.tiny_imagenet import SOURCE as TINY_IMAGENET
from metalearn.runtime.files import cache_folder

SOURCES = {
    "cifar_fs": CIFAR,
    "cub": CUB,
    "fc100": CIFAR,
    "folder": Source("yours"),
    "glyph_scenes": GLYPHS,
    "glyphs": GLYPHS,
    "harmonic": Source("made"),
    "intents": INTENTS,
    "mini_imagenet": MINI_IMAGENET,
    "mixture": Source("made"),
    "mnist": MNIST,
    "omniglot": OMNIGLOT,
    "sinusoid": Source("made"),
    "tiered_imagenet": TIERED_IMAGENET,
    "tiny_imagenet": TINY_IMAGENET,
}


def state(name: str) -> str:
    """`prepared` where a store is in the cache, `found` where its archive is here, else the origin
    of the data set. Empty for an unknown one."""
    source = SOURCES.get(name)
    if source is None:
        return ""
    cache = cache_folder()
    if source.store and any(cache.glob(f"{source.store}*/store.json")):
        return "prepared"
    places = [place for place in (data_folder(), cache) if place is not None]
    if any((place / archive).exists() for place in places for archive in source.archives):
        return "found"
    return source.origin
