"""What the methods of a comparison are measured on: episodes, networks, features."""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metalearn.backbones.norms import describe
from metalearn.backbones.weights import Report
from metalearn.commands.backbone import build_module
from metalearn.commands.comparison.plan import Plan
from metalearn.commands.episodes import build_dataset, preparation
from metalearn.data import ImageDataset
from metalearn.episodes import FewShotEpisodes, Manifest, TransformedEpisodes
from metalearn.episodes.gather import scaled
from metalearn.errors import UsageError
from metalearn.evaluation.features import Change, FeatureEpisodes, extract, used
from metalearn.functional import PureModule, pure
from metalearn.runtime.device import torch_device
from metalearn.runtime.memory import peak_memory_bytes, reset_peak_memory
from metalearn.types import Batch, Params

_BATCH = 128  # images that pass through a network at a time


class Network(NamedTuple):
    """A network from images to features, with the weights and buffers that it uses."""

    net: PureModule
    weights: Params
    report: Report | None = None

    @property
    def inductive(self) -> bool:
        """Whether an image's feature does not depend on the images beside it."""
        return {"transductive", "support"}.isdisjoint(describe(self.net.module).split("+"))


class Cost(NamedTuple):
    """Of adapting to one task from its images. milliseconds: the median over tasks."""

    milliseconds: float
    tasks: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Setting:
    """A plan, and what it names."""

    plan: Plan

    @cached_property
    def dataset(self) -> ImageDataset:
        """Raises UsageError for what is not one set of images."""
        dataset = build_dataset(self.plan.config)
        if not isinstance(dataset, ImageDataset):
            raise UsageError("compare needs one data set of images; see metalearn list dataset")
        return dataset

    @cached_property
    def device(self) -> torch.device:
        """Where networks run; heads on features run on the host."""
        return torch_device(self.plan.config["device"])

    @property
    def split(self) -> str:
        """That the methods are tested on."""
        return self.plan.config["evaluation"]["split"]

    @property
    def shots(self) -> list[int]:
        """Each with a manifest of its own."""
        return self.plan.config["episodes"]["shots"]

    def source(self, shots: int) -> FewShotEpisodes:
        """The numbered episodes of `shots`, of images as they are stored."""
        shape = self.plan.config["episodes"]
        seed = self.plan.config["evaluation"]["seed"]
        return FewShotEpisodes(self.dataset, shape["ways"], shots, shape["queries"], seed)

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give the episodes, or images do not fit."""
        preparation(self.plan.config).shape(self.dataset.image_shape)
        for shots in self.shots:
            self.source(shots).check(split)

    def images(self, shots: int, split: str, episodes: int) -> Manifest:
        """Episodes of images as the network sees them."""
        source, how = self.source(shots), preparation(self.plan.config)
        prepared = source if how.is_identity else TransformedEpisodes(source, how)
        return Manifest(prepared, split, episodes)

    def network(self, node: dict[str, Any]) -> Network:
        """The network of a backbone node. Raises UsageError."""
        shape = preparation(self.plan.config).shape(self.dataset.image_shape)
        module, report = build_module(node, shape, self.plan.config["seed"])
        net = pure(module)
        return Network(net, self.placed({**net.params, **net.buffers}), report)

    def placed(self, weights: Params) -> Params:
        """`weights` on the device."""
        return {name: t.to(self.device) for name, t in weights.items()}

    def bare(self) -> Network:
        """The backbone that every method starts from, without a head.

        Raises UsageError where it normalises an image by those beside it.
        """
        network = self.network(self.plan.bare)
        if not network.inductive:
            policy = describe(network.net.module)
            raise UsageError(
                f"the backbone's norm is {policy}, so that single images have no features; use "
                "a backbone that takes norm=frozen"
            )
        return network

    def features(
        self, network: Network, shots: int, split: str, episodes: int, change: Change | None = None
    ) -> Manifest:
        """Episodes of features, those of the same images as `images` gives.

        Each image that any of the shots needs passes through the network once; the features stay
        in the comparison's folder.
        """
        found = used((self.source(k) for k in self.shots), split, episodes)
        total = hashlib.sha256(
            f"{self.dataset.digest} {split} {describe(network.net.module)}".encode()
        )
        total.update(json.dumps(self.plan.config["images"]).encode())
        total.update(found.classes.tobytes() + found.examples.tobytes())
        for name, tensor in network.weights.items():
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        path = self.plan.folder / "features" / f"{split}-{total.hexdigest()[:16]}.safetensors"
        if path.exists():
            features = load_file(path)["features"]
        else:
            features = self.extracted(network, self._batches(split, *found[:2]))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            save_file({"features": features}, part)
            os.replace(part, path)
        source = FeatureEpisodes(self.source(shots), features, found.row, change)
        return Manifest(source, split, episodes)

    def _batches(self, split: str, classes: Any, examples: Any) -> Iterator[Tensor]:
        how = preparation(self.plan.config)
        for start in range(0, len(classes), _BATCH):
            rows = slice(start, start + _BATCH)
            pixels = self.dataset.images(split, classes[rows], examples[rows])
            yield how(scaled(torch.from_numpy(pixels)))

    def extracted(self, network: Network, batches: Iterator[Tensor]) -> Tensor:
        """Features `[n, D]` of batches of prepared images, on the host."""
        return extract(network.net, network.weights, (x.to(self.device) for x in batches))

    def cost(self, shots: int, fit: Callable[[Batch], object]) -> Cost:
        """Of `fit`, given the support images of one task after another, already on the device.

        The first task is a rehearsal that does not count, where there is time for another.
        """
        asked = self.plan.config["evaluation"]
        manifest = self.images(shots, self.split, min(asked["timed"] + 1, asked["episodes"]))
        seconds: list[float] = []
        reset_peak_memory(self.device)
        for episode in manifest.batches(1):
            support = episode.support.map(lambda t: t[0].to(self.device))
            started = self._now()
            fit(support)
            seconds.append(self._now() - started)
            if sum(seconds) > asked["timed_seconds"]:
                break
        counted = seconds[1:] or seconds
        peak = peak_memory_bytes(self.device)
        return Cost(1e3 * statistics.median(counted), len(counted), peak)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
