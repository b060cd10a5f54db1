"""Damaged weights, rules that fit nothing, folders without an encoder, given to the command."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from metalearn.backbones import Conv4
from tests.command import FAST, metalearn
from tests.inputs.case import Case, Place
from tests.texts import encoder_folder, intents_folder, needs_transformers


def weights(given: str, said: str, change: Callable[[bytes], bytes], *words: str) -> Case:
    """`train backbone.weights=w.safetensors`, of the same network, its bytes changed."""

    def ready(place: Place) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tensors = Conv4(5, 1, 4, 28, norm="frozen").state_dict()
        save_file(tensors, place.user / "w.safetensors")
        path = place.user / "w.safetensors"
        path.write_bytes(change(path.read_bytes()))

    asked = ("train", *FAST, "batching=loop", "backbone=conv4", "backbone.norm=frozen", *words)
    return Case(
        given, said, lambda place: metalearn(*asked, "backbone.weights=w.safetensors"), ready
    )


def encoder(given: str, said: str, change: Callable[[Path], object], *words: str) -> Case:
    """`train backbone=transformers` with a folder `encoder`, changed."""

    def ready(place: Place) -> None:
        intents_folder(place.data / "intents")
        (place.user / "encoder").mkdir()
        change(place.user / "encoder")

    asked = ("train", "dataset=intents", "backbone=transformers", "backbone.folder=encoder")
    more = (
        "episodes.ways=2",
        "episodes.queries=1",
        "training.queries=1",
        "tracker=disabled",
        "tracker.plots=false",
    )
    return Case(given, said, lambda place: metalearn(*asked, *more, *words), ready)


def tiny(folder: Path) -> None:
    needs_transformers()
    folder.rmdir()
    encoder_folder(folder, max_position_embeddings=4)


def without_words(folder: Path) -> None:
    needs_transformers()
    (folder / "config.json").write_text('{"model_type": "bert"}')


BACKBONES: tuple[Case, ...] = (
    weights("weights cut short", "w.safetensors is damaged", lambda held: held[:-9]),
    weights("weights that are text", "w.safetensors is damaged", lambda held: b"hello"),
    weights("weights with a number that is not finite", "values that are not finite",
            lambda held: held[:-4] + b"\x00\x00\xc0\x7f"),
    weights("a rename rule that matches nothing", "'stem' matches no name of w.safetensors",
            lambda held: held, "backbone.rename={stem: conv}"),
    weights("weights of an unknown copy", "holds no copy 'ema'", lambda held: held,
            "backbone.copy=ema"),
    encoder("an encoder's folder without config.json", "holds no config.json",
            lambda folder: None),
    encoder("an encoder's folder without a tokenizer", "holds no tokenizer",
            without_words, "backbone.weights=null"),
    encoder("a text longer than an encoder's positions", "more than the 4 positions of the encoder",
            tiny),
)  # fmt: skip
