"""What the methods of a comparison are measured on: episodes, networks, features."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from metalearn.backbones.norms import describe, inductive
from metalearn.backbones.weights import Report
from metalearn.data import ImageDataset, TensorDataset
from metalearn.engine.task import tasks_of
from metalearn.episodes import FewShotEpisodes, ImageTransform, Manifest, TransformedEpisodes
from metalearn.episodes.augmentation import Augmentation, with_copies
from metalearn.episodes.gather import inputs_of
from metalearn.errors import UsageError
from metalearn.evaluation.comparison.plan import BALANCED, Case, ComparisonPlan
from metalearn.evaluation.features import Change, FeatureEpisodes, Remembered, Used, extract, used
from metalearn.functional import PureModule, pure
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import peak_memory_bytes, reset_peak_memory
from metalearn.types import Given, Inputs, Params, map_tensors

_BATCH = 128  # images that pass through a network at a time


class Network(NamedTuple):
    """A network from images to features, with the weights and buffers that it uses.

    path: of the submodule whose input the features are; None where the network returns them.
    """

    net: PureModule
    weights: Params
    report: Report | None = None
    path: str | None = None

    @property
    def inductive(self) -> bool:
        """Whether an image's features do not depend on the images beside it."""
        return inductive(self.net.module)


class Cost(NamedTuple):
    """Of adapting to one task from its images. milliseconds: the median over tasks."""

    milliseconds: float
    tasks: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Setting:
    """A plan, and what it names.

    transform: what is done to every image. module: from a backbone node and the shape of a
    prepared image to the network, and what became of the weights that it starts from. device:
    where networks run; heads on features run on the host. queries: how they are drawn.
    augmentation, copies: of support images, which `images` puts behind them; None, 0 for none.
    kept: what the methods of one process share: episodes that were drawn, features, what was
    learned on them.
    """

    plan: ComparisonPlan
    dataset: ImageDataset | TensorDataset
    transform: ImageTransform
    module: Callable[[dict[str, Any], tuple[int, ...]], tuple[nn.Module, Report | None]]
    device: torch.device
    queries: str = BALANCED
    augmentation: Augmentation | None = None
    copies: int = 0
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time for this key."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

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
        source = FewShotEpisodes(self.dataset, shape["ways"], shots, shape["queries"], seed)
        if self.queries == BALANCED:
            return source
        return replace(source, concentration=self.plan.config["sampling"]["concentration"])

    def drawing(self, queries: str) -> "Setting":
        """The same with queries that are drawn so."""
        return replace(self, queries=queries)

    @property
    def cases(self) -> list[Case]:
        """All that the comparison measures at."""
        return [Case(k, q) for q in self.plan.config["sampling"]["queries"] for k in self.shots]

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give the episodes, or images do not fit."""
        _ = self.shape
        for shots in self.shots:
            self.source(shots).check(split)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example as the network sees it. Raises UsageError where images do not fit."""
        if isinstance(self.dataset, TensorDataset):
            return self.dataset.example_shape
        return self.transform.shape(self.dataset.image_shape)

    def images(self, shots: int, split: str, episodes: int) -> Manifest:
        """Episodes of images as the network sees them."""
        source = with_copies(self.source(shots), self.augmentation, self.copies)
        how = self.transform
        prepared = source if how.is_identity else TransformedEpisodes(source, how)
        return Manifest(prepared, split, episodes)

    def network(self, node: dict[str, Any]) -> Network:
        """The network of a backbone node. Raises UsageError."""
        module, report = self.module(node, self.shape)
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

        Each image that any of the cases needs passes through the network once; the features stay
        in the comparison's folder.
        """
        found: Used = self.once(("used", split, episodes), lambda: self._used(split, episodes))
        total = hashlib.sha256(
            f"{self.dataset.digest} {split} {describe(network.net.module)} {network.path}".encode()
        )
        total.update(json.dumps(self.plan.config["images"]).encode())
        total.update(found.classes.tobytes() + found.examples.tobytes())
        for name, tensor in network.weights.items():
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        path = self.plan.folder / "features" / f"{split}-{total.hexdigest()[:16]}.safetensors"
        features = self.once(path, lambda: self._features(network, split, found, path))
        source = FeatureEpisodes(self._drawn(shots), features, found.row, split, change)
        return Manifest(source, split, episodes)

    def _used(self, split: str, episodes: int) -> Used:
        every = (self.drawing(case.queries)._drawn(case.shots) for case in self.cases)
        return used(every, split, episodes)

    def _drawn(self, shots: int) -> Remembered:
        return self.once((shots, self.queries), lambda: Remembered(self.source(shots)))

    def _features(self, network: Network, split: str, found: Used, path: Path) -> Tensor:
        """Read, or computed and written."""
        if path.exists():
            return load_file(path)["features"]
        features = self.extracted(network, self._batches(split, *found[:2]))
        write_atomic(path, save({"features": features}))
        return features

    def _batches(self, split: str, classes: Any, examples: Any) -> Iterator[Inputs]:
        for start in range(0, len(classes), _BATCH):
            rows = slice(start, start + _BATCH)
            x, _ = inputs_of(self.dataset, split, classes[rows], examples[rows])
            yield x if self.transform.is_identity else self.transform(x)

    def extracted(self, network: Network, batches: Iterator[Inputs]) -> Tensor:
        """Features `[n, D]` of batches of prepared inputs, on the host."""
        images = (map_tensors(lambda t: t.to(self.device), x) for x in batches)
        return extract(network.net, network.weights, images, network.path)

    def cost(self, shots: int, algo: MetaAlgorithm, fit: Callable[[Given], object]) -> Cost:
        """Of `fit`, given what `algo` may see of one task after another, already on the device.

        The first task is a rehearsal that does not count, where there is time for another.
        """
        asked = self.plan.config["evaluation"]
        manifest = self.images(shots, self.split, min(asked["timed"] + 1, asked["episodes"]))
        seconds: list[float] = []
        reset_peak_memory(self.device)
        for episode in manifest.batches(1):
            task = tasks_of(algo, episode.map(lambda t: t.to(self.device))).at(0)
            started = self._now()
            fit(task.given)
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
