"""Episodes of features in the place of images: each image passes through the network once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalearn.data import ImageDataset, TensorDataset
from metalearn.episodes import FewShotEpisodes
from metalearn.episodes.gather import EpisodeIds, in_order
from metalearn.episodes.source import Derived
from metalearn.functional import PureModule
from metalearn.functional.outputs import tensor_of
from metalearn.types import Batch, Episodes, Inputs, Params, map_tensors


class Used(NamedTuple):
    """The images that episodes use, each once: classes and examples, int64 `[n]`.

    row: `[C, most]`, the place of example e of class c among them, -1 where it is not used.
    """

    classes: np.ndarray
    examples: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Remembered(Derived):
    """Episodes of `source` that are drawn once, for methods that all see the same."""

    source: FewShotEpisodes
    ids: dict[tuple[str, int], EpisodeIds] = field(default_factory=dict, repr=False)

    @property
    def dataset(self) -> ImageDataset | TensorDataset:
        """That of the source."""
        return self.source.dataset

    def draw(self, split: str, index: int) -> EpisodeIds:
        """The classes and examples of episode `index`."""
        if (split, index) not in self.ids:
            self.ids[split, index] = self.source.draw(split, index)
        return self.ids[split, index]

    def fingerprint(self, split: str, index: int) -> bytes:
        """The class and example numbers, as little-endian int64."""
        return self.draw(split, index).encode(varied=self.source.sizes is not None)


def used(sources: Iterable[FewShotEpisodes | Remembered], split: str, episodes: int) -> Used:
    """The images in the first `episodes` episodes of every source; all are of one data set."""
    marked: np.ndarray | None = None
    for source in sources:
        if marked is None:
            sizes = source.dataset.sizes[split]
            marked = np.zeros((len(sizes), int(sizes.max())), bool)
        for index in range(episodes):
            classes, support, query, *_ = source.draw(split, index)
            numbers = np.concatenate([support, query], 1)
            marked[np.repeat(classes, (numbers >= 0).sum(1)), numbers[numbers >= 0]] = True
    if marked is None:
        raise ValueError("no sources: no images are used")
    classes, examples = np.nonzero(marked)
    row = np.full(marked.shape, -1)
    row[classes, examples] = np.arange(len(classes))
    return Used(classes, examples, row)


def extract(
    net: PureModule, weights: Params, inputs: Iterable[Inputs], path: str | None = None
) -> Tensor:
    """What `net` makes of batches of inputs `[B, *X]`: `[n, D]`, on the host.

    path: a submodule, for what that is given, `[n, *F]`. The norm layers must not look at the
    batch, or a feature depends on what it came with.
    """
    # Worth a fifth of the time on a CPU; bfloat16 takes several times as long without AMX.
    weights = {name: _channels_last(t) for name, t in weights.items()}

    def features(x: Inputs) -> Tensor:
        if path is None:
            return tensor_of(net.apply(weights, x)).flatten(1)
        return net.before(path, weights, x)

    with torch.no_grad(), net.evaluating():
        return torch.cat([features(map_tensors(_channels_last, x)).cpu() for x in inputs])


def _channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.ndim == 4 else t


Change = Callable[[Episodes], Episodes]


@dataclass(frozen=True)
class FeatureEpisodes(Derived):
    """The episodes of `source` with features for images: an `EpisodeSource` of one split.

    features: `[n, D]`. row: `[C, most]`, of example e of class c, as `Used` has it.
    split: that `row` numbers the classes of. change: of a batch of episodes before it is handed
        out.
    """

    source: FewShotEpisodes | Remembered
    features: Tensor
    row: np.ndarray
    split: str
    change: Change | None = None

    @cached_property
    def targets(self) -> dict[str, Tensor]:
        """Those that the data set has beside the classes, `[n, *Y]`, in the order of `features`."""
        dataset = self.source.dataset
        if not isinstance(dataset, TensorDataset) or not dataset.targets:
            return {}
        classes, examples = np.nonzero(self.row >= 0)
        order = np.argsort(self.row[classes, examples])
        return dataset.examples(self.split, classes[order], examples[order])[1]

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: features, support `[T, S, D]` and query `[T, Q, D]`."""
        drawn = [self.source.draw(split, index) for index in indices]
        classes = np.stack([ids.classes for ids in drawn])

        def examples(which: Sequence[np.ndarray]) -> Batch:
            found, numbers = in_order(which)
            places = torch.from_numpy(self.row[np.take_along_axis(classes, found, 1), numbers])
            labels = torch.from_numpy(found)
            further = {name: t[places] for name, t in self.targets.items()}
            y = {"label": labels, **further} if further else labels
            x = self.features.index_select(0, places.flatten()).unflatten(0, places.shape)
            return Batch(x, y)

        episodes = Episodes(
            examples([ids.support for ids in drawn]), examples([ids.query for ids in drawn])
        )
        return self.change(episodes) if self.change else episodes


def unit_length(episodes: Episodes) -> Episodes:
    """Every feature vector divided by its Euclidean length."""

    def changed(batch: Batch) -> Batch:
        return batch._replace(x=torch.nn.functional.normalize(batch.x, dim=-1))

    return Episodes(changed(episodes.support), changed(episodes.query))


def standardised(episodes: Episodes, eps: float = 1e-5) -> Episodes:
    """(x - mean) / sqrt(variance + eps), with the moments of each task's support set."""
    x = episodes.support.x
    var, mean = torch.var_mean(x, dim=-2, correction=0, keepdim=True)
    scale = (var + eps).rsqrt()

    def changed(batch: Batch) -> Batch:
        return batch._replace(x=(batch.x - mean) * scale)

    return Episodes(changed(episodes.support), changed(episodes.query))
