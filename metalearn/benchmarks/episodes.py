"""The speed of drawing episodes, beside learn2learn's task set and a plain DataLoader.

All three get the same images, decoded, in memory, and make the same shape: support and queries
of one episode as float32 in [0, 1]. Ours is timed a meta-batch at a time, as training asks for
them; the others give one episode at a time, and are timed without stacking them.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from metalearn.algorithms import MAML
from metalearn.backbones import Conv4
from metalearn.data import ImageDataset
from metalearn.engine import Engine
from metalearn.episodes import Augmentation, AugmentedEpisodes, FewShotEpisodes
from metalearn.episodes.prefetch import prefetched
from metalearn.gradients import Adjoint
from metalearn.gradients.peers.base import imported
from metalearn.inner import sgd

SPLIT = "train"
META_BATCH = 32
STANDARD = Augmentation(crop=4, flip=0.5, jitter=0.4)


class Images(Dataset):
    """The images of a split as everybody's data set: `(image [C, H, W] in [0, 1], class)`."""

    def __init__(self, dataset: ImageDataset, split: str):
        classes = np.arange(dataset.class_count(split))
        sizes = dataset.examples_in(split, classes)
        self.labels = np.repeat(classes, sizes)
        examples = np.concatenate([np.arange(size) for size in sizes])
        self.images = torch.from_numpy(dataset.images(split, self.labels, examples))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])


class EpisodeSampler(Sampler):
    """The rows of one episode after another, as few-shot tutorials write it."""

    def __init__(self, labels: np.ndarray, ways: int, each: int, count: int):
        self.rows = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
        self.ways, self.each, self.count = ways, each, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.count):
            classes = np.random.choice(len(self.rows), self.ways, replace=False)
            chosen = [np.random.choice(self.rows[c], self.each, replace=False) for c in classes]
            yield np.concatenate(chosen).tolist()


@dataclass(frozen=True)
class Shape:
    """5-way 1-shot with 15 queries a class, by default."""

    ways: int = 5
    shots: int = 1
    queries: int = 15


def makers(dataset: ImageDataset, shape: Shape) -> dict[str, Callable[[int], Any]]:
    """By name, a function that draws a number of episodes."""
    source = _ours(dataset, shape)
    changed = AugmentedEpisodes(source, STANDARD, STANDARD)
    images = Images(dataset, SPLIT)
    each = shape.shots + shape.queries
    place = iter(range(0, 1 << 40, META_BATCH))

    def ours(of: Any) -> Callable[[int], None]:
        def make(count: int) -> None:
            for _ in range(0, count, META_BATCH):
                start = next(place)
                of.batch(SPLIT, range(start, start + min(count, META_BATCH)))

        return make

    taskset = _taskset(images, shape)

    def theirs(count: int) -> None:
        for _ in range(count):
            data, labels = taskset.sample()
            _support_and_queries(data, labels, shape)

    def loader(workers: int) -> Callable[[int], None]:
        def make(count: int) -> None:
            sampler = EpisodeSampler(images.labels, shape.ways, each, count)
            for data, labels in DataLoader(images, batch_sampler=sampler, num_workers=workers):
                _support_and_queries(data, labels, shape)

        return make

    return {
        "ours": ours(source),
        "ours, augmented": ours(changed),
        "learn2learn": theirs,
        "DataLoader": loader(0),
        "DataLoader, 2 workers": loader(2),
    }


def measure(
    dataset: ImageDataset, shape: Shape, seconds: float = 1.0, repeats: int = 5
) -> list[Mapping[str, Any]]:
    """Episodes a second of every maker, in turns: a dict each, with the times of all repeats."""
    random.seed(0)
    np.random.seed(0)
    made = makers(dataset, shape)
    counts: dict[str, int] = {}

    def seconds_of(name: str, count: int) -> float:
        started = time.perf_counter()
        made[name](count)
        return time.perf_counter() - started

    for name in made:
        count = META_BATCH
        while (took := seconds_of(name, count)) < seconds / 4:  # the last of these warms up
            count *= 2
        counts[name] = max(META_BATCH, round(count * seconds / took / META_BATCH) * META_BATCH)
    rates: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, count in counts.items():
            rates[name].append(count / seconds_of(name, count))
    best = statistics.median(rates["ours"])
    rows = []
    for name, found in rates.items():
        ratio = best / statistics.median(found)
        row = {"maker": name, "episodes_per_second": found, "ours_is": ratio}
        rows.append({"dataset": dataset.name, **row})
    return rows


def share(dataset: ImageDataset, shape: Shape, tasks: int = 4, repeats: int = 15) -> dict[str, Any]:
    """Seconds of making a meta-batch, augmented, and of a MAML step on it: a Conv-4-64, one inner
    step, the second-order meta-gradient as `batching=auto` runs it, without the outer optimizer.
    The hardest case there is for whoever makes the episodes. And again with one thread that makes
    the next meta-batch meanwhile: seconds that the engine waits for it, and of its step."""
    channels, side, _ = dataset.image_shape
    changed = AugmentedEpisodes(_ours(dataset, shape), STANDARD, STANDARD)
    algo = MAML(Conv4(shape.ways, channels, size=side), 1, sgd(0.1))
    meta, gradient = algo.init(), functools.partial(Engine(), Adjoint())
    episodes = changed.batch(SPLIT, range(tasks))
    gradient(algo, meta, episodes)

    def timed(workers: int) -> tuple[float, float]:
        starts = range(0, (repeats + 1) * tasks, tasks)
        coming = prefetched(
            lambda start: changed.batch(SPLIT, range(start, start + tasks)), starts, workers
        )
        waiting, stepping = [], []
        for _ in starts:
            start = time.perf_counter()
            episodes = next(coming)
            middle = time.perf_counter()
            gradient(algo, meta, episodes)
            waiting.append(middle - start)
            stepping.append(time.perf_counter() - middle)
        coming.close()
        return statistics.median(waiting[1:]), statistics.median(stepping[1:])

    (made, stepped), (waited, beside) = timed(0), timed(1)
    told = {"making": made, "step": stepped, "share": made / (made + stepped)}
    told |= {"waiting": waited, "step_beside": beside}
    return {"dataset": dataset.name, "tasks": tasks, **told}


def _ours(dataset: ImageDataset, shape: Shape) -> FewShotEpisodes:
    """As `metalearn train` has them on a CPU: the images in memory."""
    cpu = torch.device("cpu")
    return FewShotEpisodes(dataset, shape.ways, shape.shots, shape.queries, device=cpu)


def _taskset(images: Images, shape: Shape) -> Any:
    data = imported("learn2learn").data
    dataset = data.MetaDataset(images, indices_to_labels=dict(enumerate(images.labels.tolist())))
    steps = data.transforms
    drawn = [
        steps.NWays(dataset, shape.ways),
        steps.KShots(dataset, shape.shots + shape.queries),
    ]
    made = [steps.LoadData, steps.RemapLabels, steps.ConsecutiveLabels]
    return data.Taskset(dataset, [*drawn, *(step(dataset) for step in made)])


def _support_and_queries(data: Tensor, labels: Tensor, shape: Shape) -> Sequence[Tensor]:
    """Support and queries of an episode whose classes stand together."""
    parts = data.unflatten(0, (shape.ways, shape.shots + shape.queries))
    return parts[:, : shape.shots].flatten(0, 1), parts[:, shape.shots :].flatten(0, 1)
