"""From a composed configuration to its data set and episodes, each object made once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from metalearn.commands.building.arguments import check_choice, check_values, factory, make
from metalearn.data import Harmonic, ImageDataset, Mixture, Sinusoid, TensorDataset
from metalearn.episodes import (
    Augmentation,
    Corruption,
    DenseEpisodes,
    EpisodeSource,
    ImageTransform,
    Manifest,
    TransformedEpisodes,
    corrupted,
    make_episodes,
    read_manifest,
)
from metalearn.errors import UsageError
from metalearn.runtime.device import torch_device

Images = ImageDataset | Mixture
Curves = Sinusoid | Harmonic
_WITHOUT_QUERY = (
    "classes of a task may have no query, as with sampling.queries=dirichlet, and a network with "
    "outputs would take them for classes that the task lacks; use sampling.queries=balanced, or "
    "algorithms without a head, as algorithm=protonet"
)


@dataclass(frozen=True)
class Data:
    """What a configuration says of its data.

    open: reads the data set, and prepares it if it was not. sampling: how ways, shots and classes
    are drawn, where not uniformly. augmentation: what is done to the images of training episodes,
    of the support set and of the queries. transform: what is done to the images of every episode.
    corruption: of the images of test episodes, before that.
    """

    config: Mapping[str, Any]
    open: Callable[[], Images | TensorDataset | Curves]
    sampling: dict[str, Any]
    augmentation: dict[str, Augmentation | None]
    transform: ImageTransform
    corruption: Corruption | None = None

    @cached_property
    def dataset(self) -> Images | TensorDataset | Curves:
        """Opened at the first use. Raises DataError where it is missing or damaged."""
        return self.open()

    @property
    def images(self) -> bool:
        """Whether there are images."""
        return isinstance(self.dataset, Images)

    @property
    def classes(self) -> bool:
        """Whether there are classes; else curves."""
        return isinstance(self.dataset, Images | TensorDataset)

    @cached_property
    def held_on(self) -> torch.device | None:
        """The device that the images are kept on, ready to be gathered; None where they do not
        fit, and come from the store's file."""
        device, dataset = torch_device(self.config["device"]), self.dataset
        made = getattr(dataset, "scene", None) is not None  # on the host
        return device if isinstance(dataset, Images) and not made and dataset.fits(device) else None

    @property
    def task(self) -> str:
        """classification (regression, too), detection or segmentation."""
        return self.config.get("task", "classification")

    @property
    def missing_classes(self) -> bool:
        """Whether a task may have fewer classes than the network has outputs. Raises UsageError
        where it may have classes without a query, too."""
        sizes, outputs = self.sampling["sizes"], self.config.get("outputs")
        found = bool(sizes and outputs and sizes.fewest_ways(outputs) < outputs)
        if found and self.sampling["concentration"] is not None:
            raise UsageError(_WITHOUT_QUERY)
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example, prepared."""
        dataset = self.dataset
        if isinstance(dataset, TensorDataset):
            return dataset.example_shape
        return self.transform.shape(dataset.image_shape) if isinstance(dataset, Images) else (1,)

    def source(self, split: str) -> EpisodeSource:
        """The numbered episodes of `split`, of images as they are stored. Raises UsageError."""
        config = self.config
        training = split == "train"
        own = config["training"] if training else {}
        seed = config["seed"] if training else config["evaluation"]["seed"]
        shape = {
            name: value if own.get(name) is None else own[name]
            for name, value in config["episodes"].items()
        }
        if self.classes and config["outputs"] is not None and shape["ways"] != config["outputs"]:
            name = "episodes" if own.get("ways") is None else "training"
            raise UsageError(
                f"{name}.ways={shape['ways']}, but the network has {config['outputs']} outputs; "
                "only algorithms without a head, as algorithm=protonet, can take other ways"
            )
        how = self.sampling
        if not self.classes and any(how.values()):
            raise UsageError("sampling is of classes, not for regression; use sampling=uniform")
        drawn = {**shape, **how, "seed": seed, "device": self.held_on, "task": self.task}
        source = make_episodes(self.dataset, **drawn)
        source.check(split)
        return source

    def prepared(self, source: EpisodeSource) -> EpisodeSource:
        """`source` with its images prepared. Raises UsageError where it has none, or where what is
        asked for does not fit them."""
        if self.transform.is_identity:
            return source
        self.check_transform()
        return TransformedEpisodes(source, self.transform)

    def check_transform(self) -> None:
        """Raise UsageError for a transform where there are no images, or that does not fit them."""
        if not (self.images or self.transform.is_identity):
            raise UsageError("images is for images; use images=as_they_are")
        _ = self.shape

    def test(self) -> Manifest:
        """The episodes of `evaluation.split`, or those of `evaluation.manifest`; prepared."""
        asked = self.config["evaluation"]
        if asked.get("manifest") is None:
            source = corrupted(self.source(asked["split"]), self.corruption)
            return Manifest(self.prepared(source), asked["split"], asked["episodes"])
        if not isinstance(self.dataset, Images):
            raise UsageError("evaluation.manifest lists images, and this data set has none")
        manifest = read_manifest(Path(asked["manifest"]), self.dataset, self.held_on)
        source: Any = manifest.source
        ways, outputs = source.shape[0], self.config["outputs"]
        if outputs not in (None, ways):
            raise UsageError(
                f"the manifest has {ways} ways, but the network has {outputs} outputs; "
                f"use episodes.ways={ways}"
            )
        fewer = any(len(ids.classes) < ways for ids in source.drawn)
        if outputs is not None and fewer and not self.missing_classes:
            raise UsageError(
                "the manifest has episodes of fewer ways too, which a network with outputs for "
                f"{ways} takes only where it was trained so; use sampling=meta_dataset in training"
            )
        every = all((ids.query >= 0).any(1).all() for ids in source.drawn)
        if self.missing_classes and not every:
            raise UsageError(_WITHOUT_QUERY)
        if self.task != "classification":
            source = DenseEpisodes(source, self.task)
        source = corrupted(source, self.corruption)
        return replace(manifest, source=self.prepared(source))


def read_data(config: Mapping[str, Any]) -> Data:
    """Every choice that needs no data, so that none is decoded before a mistake is told.

    Raises UsageError.
    """
    check_values(config)
    changes = _known(config, "augmentation", ("support", "query"), "augmentation.support or .query")
    augmentation = {part: _made(changes, "augmentation", part) for part in ("support", "query")}
    dataset, images = factory(config["dataset"], "dataset"), config.get("images") or {}
    how = config.get("corruption") or {}
    corruption = Corruption(**how) if how.get("name") is not None else None
    transform = ImageTransform(**images)
    return Data(config, dataset, _sampling(config), augmentation, transform, corruption)


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("sizes", "within_superclass", "queries", "concentration")
    node = _known(config, "sampling", names, ", ".join(f"sampling.{name}" for name in names))
    within = node.get("within_superclass", False)
    if not isinstance(within, bool):
        raise UsageError(f"sampling.within_superclass={within} must be true or false")
    queries = node.get("queries", "balanced")
    check_choice("sampling.queries", queries, ("balanced", "dirichlet"))
    return {
        "sizes": _made(node, "sampling", "sizes"),
        "within_superclass": within,
        "concentration": node.get("concentration", 2.0) if queries == "dirichlet" else None,
    }


def _known(
    config: Mapping[str, Any], section: str, names: tuple[str, ...], use: str
) -> Mapping[str, Any]:
    """A section that may be absent. Raises UsageError for keys that it does not have."""
    node = config.get(section) or {}
    if unknown := set(node) - set(names):
        raise UsageError(f"no key {section}.{min(unknown)}; use {use}")
    return node


def _made(node: Mapping[str, Any], section: str, key: str) -> Any:
    return make(node[key], f"{section}.{key}") if node.get(key) else None
