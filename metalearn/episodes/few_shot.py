"""N-way K-shot episodes of one data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from metalearn.data import ImageDataset, TensorDataset
from metalearn.data.layout import some
from metalearn.episodes.gather import EpisodeIds, gather
from metalearn.episodes.sizes import Sizes, dirichlet_counts
from metalearn.episodes.source import generator
from metalearn.errors import UsageError, check_whole
from metalearn.types import Episodes


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest of every row of `values` `[R, n]`, in order: a stable
    argsort cut short."""
    rows, length = values.shape
    if length > 64 and count < length:  # below, sorting all is faster
        last = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
        found = np.flatnonzero(values <= last)
        if len(found) == rows * count:  # else two are equal at the limit
            order = np.argsort(values.ravel()[found].reshape(rows, count), axis=1, kind="stable")
            start = np.arange(rows)[:, None]
            return found[order + start * count] - start * length
    return np.argsort(values, axis=1, kind="stable")[:, :count]


@dataclass(frozen=True)
class FewShotEpisodes:
    """N-way K-shot classification with `queries` query examples a class.

    Classes and examples are drawn uniformly without replacement. A class's label is its place
    in the draw. Examples go shot by shot, one of every class, so that minibatches of a multiple
    of N examples are balanced.

    device: where the images are kept and gathered, None for the host, straight from the store.
    What an episode holds is the same to the bit.
    sizes: draws ways and shots anew for every episode; `ways` and `queries` are the largest then,
    and `shots` has no meaning.
    within_superclass: all classes of an episode are of one superclass, which is drawn uniformly
    from those that have enough.
    concentration: the queries of an episode, as many in all, are not of equal classes, but in
    proportions of a Dirichlet distribution of this concentration; None for equal ones. Classes, and
    where sizes are fixed support sets, are those of None.

    Raises UsageError for a shape that is not positive; `check` tells whether a split can fill it.
    """

    dataset: ImageDataset | TensorDataset
    ways: int
    shots: int
    queries: int
    seed: int = 0
    device: torch.device | None = None
    sizes: Sizes | None = None
    within_superclass: bool = False
    concentration: float | None = None

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries"):
            check_whole(f"episodes.{name}", getattr(self, name), 1)
        if self.concentration is not None and not 0 < self.concentration < np.inf:
            raise UsageError(f"sampling.concentration={self.concentration} must be above 0")
        if self.within_superclass and self.dataset.groups is None:
            use = "use sampling.within_superclass=false"
            raise UsageError(f"{self.dataset.name} has no superclasses; {use}")

    @property
    def shape(self) -> tuple[int, int | None, int]:
        """(N, K, queries a class); the largest of each, and None for K, where sizes are drawn."""
        return self.ways, None if self.sizes else self.shots, self.queries

    def check(self, split: str) -> None:
        """Raise UsageError where `split` cannot give one episode of this shape."""
        if split not in self.dataset.splits:
            raise UsageError(f"split={split!r} is not known; use {', '.join(self.dataset.splits)}")
        ways = self.sizes.fewest_ways(self.ways) if self.sizes else self.ways
        available = self.dataset.class_count(split)
        if not available:
            raise UsageError(
                f"{self.dataset.name} has no classes in its {split} split; use another split, or "
                "give it some by dataset.fractions or dataset.splits"
            )
        if ways > available:
            raise UsageError(
                f"episodes.ways={ways}, but {self.dataset.name} has {available} classes "
                f"in its {split} split; use at most {available}"
            )
        if self.within_superclass and not self._pools[split]:
            largest = max(np.unique(self._groups(split), return_counts=True)[1])
            raise UsageError(
                f"episodes.ways={ways}, but no superclass of {self.dataset.name} ({split}) has "
                f"more than {largest} classes; use at most {largest}"
            )
        sizes, needed = self.dataset.sizes[split], self.shots + self.queries
        examples, shots = int(sizes.min()), "episodes.shots"
        if self.sizes:
            needed, shots = self.sizes.min_examples(self.queries), "the shots of sampling.sizes"
        if needed > examples:
            small, use = np.flatnonzero(sizes < needed), f"use at most {examples}"
            if len(small) < len(sizes):  # others have enough
                names = self.dataset.class_names(split)
                use += f", or leave out {some([f'{names[c]} ({sizes[c]})' for c in small])}, as "
                use += f"dataset=folder does by dataset.min_images={needed}"
            raise UsageError(
                f"{shots} + episodes.queries = {needed}, but a class of {self.dataset.name} "
                f"({split}) has {examples} examples; {use}"
            )

    def draw(self, split: str, index: int) -> EpisodeIds:
        """The classes and examples of episode `index`."""
        rng = generator(self.dataset.digest, split, self.seed, index)
        pool = None
        if self.within_superclass:
            pools = self._pools[split]
            pool = pools[int(rng.random() * len(pools))]
        count = self.dataset.class_count(split) if pool is None else len(pool)
        ways = self.sizes.ways(rng, self.ways, count) if self.sizes else self.ways
        # The order of uniform numbers, which numpy keeps from version to version.
        classes = _lowest(rng.random(count), ways)
        if pool is not None:
            classes = pool[classes]
        available = self.dataset.sizes[split][classes]
        if self.concentration is not None:
            return self._uneven(rng, classes, available, self.concentration)
        if self.sizes is None:
            examples = _first(rng, available, self.shots + self.queries)
            return EpisodeIds(classes, examples[:, : self.shots], examples[:, self.shots :])
        shots, queries = self.sizes.shots(rng, available, self.queries)
        max_shots = int(shots.max())
        examples = _first(rng, available, queries + max_shots)
        support = np.where(np.arange(max_shots) < shots[:, None], examples[:, queries:], -1)
        return EpisodeIds(classes, support, examples[:, :queries])

    def _uneven(
        self,
        rng: np.random.Generator,
        classes: np.ndarray,
        available: np.ndarray,
        concentration: float,
    ) -> EpisodeIds:
        shots, queries = np.full(len(classes), self.shots), self.queries
        if self.sizes:
            shots, queries = self.sizes.shots(rng, available, queries)
        total = len(classes) * queries
        examples = _first(rng, available, min(int(available.max()), int(shots.max()) + total))
        counts = dirichlet_counts(rng, concentration, total, available - shots)

        def part(start: np.ndarray | int, count: np.ndarray) -> np.ndarray:
            place = np.arange(count.max())
            at = np.broadcast_to(start + place, (len(classes), len(place)))
            taken = np.take_along_axis(examples, np.minimum(at, examples.shape[1] - 1), 1)
            return np.where(place < count[:, None], taken, -1)

        return EpisodeIds(classes, part(0, shots), part(shots[:, None], counts))

    def batch(self, split: str, indices: Sequence[int]) -> Episodes:
        """Episodes `indices`: pixels scaled to [0, 1], support `[T, S, C, H, W]`."""
        drawn = [self.draw(split, index) for index in indices]
        return gather(self.dataset, split, drawn, self.device, varied=self.sizes is not None)

    def fingerprint(self, split: str, index: int) -> bytes:
        """The class and example numbers, as little-endian int64."""
        return self.draw(split, index).encode(varied=self.sizes is not None)

    @cached_property
    def _pools(self) -> dict[str, list[np.ndarray]]:
        """By split, the classes of every superclass that has enough of them."""
        ways = self.sizes.fewest_ways(self.ways) if self.sizes else self.ways
        found = {}
        for split in self.dataset.splits:
            groups = self._groups(split)
            members = (np.flatnonzero(groups == name) for name in np.unique(groups))
            found[split] = [classes for classes in members if len(classes) >= ways]
        return found

    def _groups(self, split: str) -> np.ndarray:
        assert self.dataset.groups is not None
        return np.asarray(self.dataset.groups)[self.dataset.splits[split].index]


def _lowest(uniform: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest of numbers that are uniform in [0, 1), in order."""
    # They are almost surely among these few; where they are not, all are sorted.
    likely = np.flatnonzero(uniform < 8 * count / len(uniform))
    if len(likely) < count:
        likely = np.arange(len(uniform))
    return likely[np.argsort(uniform[likely], kind="stable")[:count]]


def _first(rng: np.random.Generator, available: np.ndarray, count: int) -> np.ndarray:
    """`[N, count]`: the first examples of each class in a random order of all that it has;
    those past the end of a smaller class are no examples of it."""
    largest = int(available.max())
    total = int(available.sum())
    # Class by class from one stream; what a smaller class lacks is never among the first.
    if total == largest * len(available):
        order = rng.random((len(available), largest))
    else:
        order = np.full((len(available), largest), np.inf)
        order[np.arange(largest) < available[:, None]] = rng.random(total)
    return smallest(order, count)
