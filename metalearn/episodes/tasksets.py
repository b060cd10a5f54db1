"""learn2learn's task sets as our episodes, and our episodes as a task set of learn2learn's.

Nothing here imports learn2learn: a task set is whatever has `sample()`, or `len()` and `[i]`,
giving `(data [B, *X], labels [B])`.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.episodes.source import EpisodeSource
from metalearn.errors import UsageError
from metalearn.types import Batch, Episodes


@dataclass(frozen=True)
class TasksetEpisodes:
    """Episodes from learn2learn's task sets, one for each split: an `EpisodeSource`.

    tasksets: by split, of tasks with `shots + queries` examples of each of `ways` classes, under
    any labels. Of every class the first `shots` examples are the support set, in the order of the
    labels.

    learn2learn draws from the global generators of Python, numpy and torch. They are seeded here
    by (seed, split, index) and put back after, so that episode `index` is the same whenever it is
    drawn; the data set's own transforms may still differ. A set of `n` tasks, which learn2learn
    draws and keeps as they are first asked for, is drawn anew instead: its task i by
    (seed, split, i), of which episode `index` is one drawn at random.
    """

    tasksets: dict[str, Any]
    ways: int
    shots: int
    queries: int
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, queries a class)."""
        return self.ways, self.shots, self.queries

    def check(self, split: str) -> None:
        """Raise UsageError where `split` has no task set, or one of another shape."""
        if split not in self.tasksets:
            raise UsageError(f"split={split!r} has no task set; use {', '.join(self.tasksets)}")
        self._examples(split, 0)

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`, stacked: support `[T, N*K, *X]`, query `[T, N*Q, *X]`."""
        tasks = [self._examples(split, index) for index in indices]
        each = self.shots + self.queries

        def part(start: int, stop: int) -> Batch:
            # Shot by shot, one of every class, as FewShotEpisodes.
            x = torch.stack([t.unflatten(0, (self.ways, each))[:, start:stop] for t in tasks])
            labels = torch.arange(self.ways).repeat(len(tasks), stop - start)
            return Batch(x.transpose(1, 2).flatten(1, 2).contiguous(), labels)

        return Episodes(part(0, self.shots), part(self.shots, each))

    def fingerprint(self, split: str, index: int) -> bytes:
        """A digest of the examples themselves: task sets do not tell their numbers."""
        x = self._examples(split, index).contiguous()
        return hashlib.sha256(x.view(torch.uint8).numpy().tobytes()).digest()

    def _examples(self, split: str, index: int) -> Tensor:
        """`[ways * (shots + queries), *X]`, by class."""
        with _seeded(self._key(split, f"{index}")):
            data, labels = self._drawn(split)
        labels = torch.as_tensor(labels).flatten()
        labels = labels.unique(return_inverse=True)[1]
        each = self.shots + self.queries
        counts = torch.bincount(labels).tolist()
        if counts != [each] * self.ways:
            raise UsageError(
                f"the task set of {split} gives {counts} examples a class, not {each} of "
                f"{self.ways} classes; use KShots(k=shots + queries) and NWays(n=ways)"
            )
        return torch.as_tensor(data)[labels.argsort(stable=True)]

    def _drawn(self, split: str) -> tuple[Any, Any]:
        """A task of the seeded generators."""
        tasks = self.tasksets[split]
        if not hasattr(tasks, "sample"):
            return tasks[random.randrange(len(tasks))]
        count = getattr(tasks, "num_tasks", -1)
        if count < 1 or not hasattr(tasks, "sample_task_description"):
            return tasks.sample()
        with _seeded(self._key(split, f"task {random.randrange(count)}")):
            return tasks.get_task(tasks.sample_task_description())

    def _key(self, split: str, what: str) -> int:
        digest = hashlib.sha256(f"{split}/{self.seed}/{what}".encode()).digest()
        return int.from_bytes(digest[:4], "little")


@dataclass(frozen=True)
class EpisodeTasks:
    """Episodes 0 to `count` - 1 of a source as a task set of learn2learn's: `(data, labels)`.

    The examples of a class stand together, support before queries. Where there are as many
    queries as shots they alternate, so that learn2learn's examples, which adapt on every other
    one, adapt on the support set.
    """

    source: EpisodeSource
    split: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """`data [N*(K+Q), *X]` and `labels [N*(K+Q)]` of episode `index`. Raises IndexError."""
        if not 0 <= index < self.count:
            raise IndexError(f"task {index} of {self.count}")
        ways, shots, queries = self.source.shape
        if ways is None or shots is None:
            raise UsageError("a task set has classes, and as many examples of each in every task")
        support, query, _ = self.source.batch(self.split, [index])
        if not torch.equal(query.labels[0].cpu(), torch.arange(ways).repeat(queries)):
            raise UsageError("a task set has as many examples of each class; use balanced queries")
        parts = [
            batch.x[0].unflatten(0, (each, ways)).transpose(0, 1)
            for batch, each in ((support, shots), (query, queries))
        ]
        data = torch.stack(parts, 2).flatten(1, 2) if shots == queries else torch.cat(parts, 1)
        return data.flatten(0, 1), torch.arange(ways).repeat_interleave(shots + queries)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[index] for index in range(self.count))

    def sample(self) -> tuple[Tensor, Tensor]:
        """A task drawn by Python's global generator, as learn2learn does."""
        return self[random.randrange(self.count)]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
