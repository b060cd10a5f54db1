"""From a composed configuration to its data set and episodes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metalearn.commands.arguments import check_numbers, make
from metalearn.data import Harmonic, ImageDataset, Mixture, Sinusoid
from metalearn.episodes import (
    Augmentation,
    EpisodeSource,
    ImageTransform,
    Manifest,
    TransformedEpisodes,
    make_episodes,
    read_manifest,
)
from metalearn.errors import UsageError
from metalearn.runtime.device import torch_device

Images = ImageDataset | Mixture
Curves = Sinusoid | Harmonic


def build_dataset(config: Mapping[str, Any]) -> Images | Curves:
    """The data set alone, prepared if it was not."""
    check_numbers(config)
    return make(config["dataset"], "dataset")


def build_source(config: Mapping[str, Any], split: str) -> EpisodeSource:
    """The episodes of `split` that a run with this configuration draws, without its network."""
    config = {**config, "outputs": None}
    own = config["training"] if split == "train" else {}
    seed = config["seed"] if split == "train" else config["evaluation"]["seed"]
    return episodes(config, build_dataset(config), seed, own, split)


def episodes(
    config: Mapping[str, Any], dataset: Any, seed: int, own: Mapping[str, Any], split: str
) -> EpisodeSource:
    shape = {
        name: value if own.get(name) is None else own[name]
        for name, value in config["episodes"].items()
    }
    images = isinstance(dataset, Images)
    if images and config["outputs"] is not None and shape["ways"] != config["outputs"]:
        name = "episodes" if own.get("ways") is None else "training"
        raise UsageError(
            f"{name}.ways={shape['ways']}, but the network has {config['outputs']} outputs; only "
            "algorithms without a head, as algorithm=protonet, can take other ways"
        )
    how = sampling(config)
    if not images and (how["sizes"] or how["within_superclass"]):
        raise UsageError("sampling is of classes, and regression has none; use sampling=uniform")
    source = make_episodes(dataset, **shape, **how, seed=seed, device=_held_on(config, dataset))
    source.check(split)
    return source


def test_manifest(config: Mapping[str, Any], dataset: Images | Curves) -> Manifest:
    evaluation = config["evaluation"]
    if evaluation.get("manifest") is None:
        source = episodes(config, dataset, evaluation["seed"], {}, evaluation["split"])
        return Manifest(source, evaluation["split"], evaluation["episodes"])
    if not isinstance(dataset, Images):
        raise UsageError("evaluation.manifest lists images; regression has none")
    manifest = read_manifest(Path(evaluation["manifest"]), dataset, _held_on(config, dataset))
    ways, shots, _ = manifest.source.shape
    if config["outputs"] not in (None, ways):
        raise UsageError(
            f"the manifest has {ways} ways, but the network has {config['outputs']} outputs; "
            f"use episodes.ways={ways}"
        )
    if config["outputs"] is not None and shots is None and not sampling(config)["sizes"]:
        raise UsageError(
            "the manifest has episodes of fewer ways too, which a network with outputs for "
            f"{ways} takes only where it was trained so; use sampling=meta_dataset in training"
        )
    return manifest


def sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    """How ways, shots and classes are drawn, where not uniformly."""
    node = config.get("sampling") or {}
    if unknown := set(node) - {"sizes", "within_superclass"}:
        raise UsageError(
            f"no key sampling.{min(unknown)}; use sampling.sizes or sampling.within_superclass"
        )
    within = node.get("within_superclass", False)
    if not isinstance(within, bool):
        raise UsageError(f"sampling.within_superclass={within} must be true or false")
    sizes = make(node["sizes"], "sampling.sizes") if node.get("sizes") else None
    return {"sizes": sizes, "within_superclass": within}


def changes(config: Mapping[str, Any]) -> dict[str, Augmentation | None]:
    """What is done to the images of training episodes: of the support set, of the queries."""
    node = config.get("augmentation") or {}
    if unknown := set(node) - {"support", "query"}:
        raise UsageError(f"no key augmentation.{min(unknown)}; use augmentation.support or .query")
    return {
        part: make(node[part], f"augmentation.{part}") if node.get(part) else None
        for part in ("support", "query")
    }


def preparation(config: Mapping[str, Any]) -> ImageTransform:
    """What is done to the images of every episode."""
    return ImageTransform(**(config.get("images") or {}))


def prepared(
    config: Mapping[str, Any], dataset: Images | Curves, source: EpisodeSource
) -> EpisodeSource:
    """`source` with its images prepared. Raises UsageError where it has none, or where what is
    asked for does not fit them."""
    how = preparation(config)
    if how.is_identity:
        return source
    if not isinstance(dataset, Images):
        raise UsageError("images is for images; use images=as_they_are")
    how.shape(dataset.image_shape)
    return TransformedEpisodes(source, how)


def _held_on(config: Mapping[str, Any], dataset: Images | Curves) -> torch.device | None:
    """The device that the images are kept on, ready to be gathered; None where they do not fit,
    and come from the store's file."""
    device = torch_device(config["device"])
    return device if isinstance(dataset, Images) and dataset.fits(device) else None
