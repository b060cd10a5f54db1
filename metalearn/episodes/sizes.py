"""Distributions of ways, shots and queries, where they differ between episodes or classes."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.special import gammaincinv

from metalearn.errors import UsageError


class Sizes(Protocol):
    """Ways and shots drawn anew for every episode, from `rng.random` alone: unlike numpy's other
    draws it stays the same from version to version."""

    def fewest_ways(self, max_ways: int) -> int:
        """The smallest number of ways of an episode of at most `max_ways`."""
        ...

    def min_examples(self, queries: int) -> int:
        """How many examples every class must have, for at most `queries` queries of it."""
        ...

    def ways(self, rng: np.random.Generator, max_ways: int, classes: int) -> int:
        """The ways of an episode, out of so many classes."""
        ...

    def shots(
        self, rng: np.random.Generator, examples: np.ndarray, queries: int
    ) -> tuple[np.ndarray, int]:
        """Support examples of each class, int64 `[N]`, and queries of every class, at most
        `queries`. examples: how many each class has, `[N]`."""
        ...


@dataclass(frozen=True)
class MetaDatasetSizes:
    """Ways and shots as Meta-Dataset draws them (Triantafillou et al. 2020, appendix A).

        N ~ U{min_ways, ..., min(max_ways, classes)}
        q = min(queries, min_c |c| / 2)
        S = min(max_support, sum_c ceil(beta * min(max_class_support, |c| - q))),  beta ~ U(0, 1]
        R_c ~ |c| * exp(alpha_c),  alpha_c ~ U[log 0.5, log 2),  sum_c R_c = 1
        K_c = min(floor(R_c * (S - N)) + 1, |c| - q)

    min_ways: of an episode. max_support: support examples of an episode. max_class_support: what
    one class counts for in S. Raises UsageError for numbers out of range.
    """

    min_ways: int = 5
    max_support: int = 500
    max_class_support: int = 100

    def __post_init__(self) -> None:
        if self.min_ways < 2 or self.max_support < self.min_ways or self.max_class_support < 1:
            raise UsageError(
                f"sampling.sizes: min_ways={self.min_ways} must be 2 or more, max_support="
                f"{self.max_support} no less than that, max_class_support="
                f"{self.max_class_support} 1 or more"
            )

    def fewest_ways(self, max_ways: int) -> int:
        """`min_ways`. Raises UsageError where an episode may not have so many."""
        if not self.min_ways <= max_ways <= self.max_support:
            raise UsageError(
                f"episodes.ways={max_ways} is the largest number of ways that sampling="
                f"meta_dataset draws; use {self.min_ways} to {self.max_support}, as 50"
            )
        return self.min_ways

    def min_examples(self, queries: int) -> int:
        """One support example and one query."""
        return 2

    def ways(self, rng: np.random.Generator, max_ways: int, classes: int) -> int:
        """N."""
        return self.min_ways + int(rng.random() * (min(max_ways, classes) - self.min_ways + 1))

    def shots(
        self, rng: np.random.Generator, examples: np.ndarray, queries: int
    ) -> tuple[np.ndarray, int]:
        """K_c `[N]` and q."""
        count = min(queries, int(examples.min()) // 2)
        left = examples - count
        # floor + 1 of a number in [0, 1) is ceil of one in (0, 1].
        counted = np.floor(rng.random() * np.minimum(self.max_class_support, left)) + 1
        total = min(self.max_support, counted.sum())
        log_weight = math.log(0.5) + rng.random(len(examples)) * math.log(4)
        share = examples * np.exp(log_weight)
        wanted = np.floor(share / share.sum() * (total - len(examples))) + 1
        return np.minimum(wanted, left).astype(np.int64), count


@dataclass(frozen=True)
class ImbalancedSizes:
    """Support sets whose classes have between `low` and `high` examples (Ochal et al. 2021).

    kind: "linear" spreads the numbers of shots evenly from low to high; "step" gives half of the
    classes low and the others high; "random" draws each. Which class gets which is drawn.
    Raises UsageError for other values.
    """

    low: int = 1
    high: int = 9
    kind: Literal["linear", "step", "random"] = "linear"

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise UsageError(
                f"sampling.sizes: low={self.low} must be 1 or more, and high={self.high} no less"
            )
        if self.kind not in ("linear", "step", "random"):
            raise UsageError(f"sampling.sizes: kind={self.kind!r} must be linear, step or random")

    def fewest_ways(self, max_ways: int) -> int:
        """Ways do not vary."""
        return max_ways

    def min_examples(self, queries: int) -> int:
        """`high` support examples and the queries."""
        return self.high + queries

    def ways(self, rng: np.random.Generator, max_ways: int, classes: int) -> int:
        """`max_ways`."""
        return max_ways

    def shots(
        self, rng: np.random.Generator, examples: np.ndarray, queries: int
    ) -> tuple[np.ndarray, int]:
        """Shots of each class, and `queries`."""
        ways = len(examples)
        if self.kind == "random":
            spread = np.floor(rng.random(ways) * (self.high - self.low + 1)) + self.low
        elif self.kind == "step":
            spread = np.where(np.arange(ways) < (ways + 1) // 2, self.low, self.high)
        else:
            # To the nearest, halves up.
            spread = np.floor(np.linspace(self.low, self.high, ways) + 0.5)
        return spread[np.argsort(rng.random(ways), kind="stable")].astype(np.int64), queries


def dirichlet_counts(
    rng: np.random.Generator, concentration: float, total: int, room: np.ndarray
) -> np.ndarray:
    """How many of `total` queries each class has, int64 `[N]`: some 0, many another.

        p ~ Dirichlet(concentration, ..., concentration),   count_n = p_n * total

    to whole numbers by the largest remainders. room: the most of each class, `[N]`; what one has no
    room for goes to the others by the same proportions.

    Veilleux, Boudiaf, Piantanida, Ben Ayed: Realistic Evaluation of Transductive Few-Shot Learning,
    2021, section 3, with concentration 2.
    """
    # A Dirichlet's proportions are those of gamma variables; these by their quantiles.
    p = np.maximum(gammaincinv(concentration, rng.random(len(room))), 1e-300)
    wanted = np.zeros(len(room))
    while (left := total - wanted.sum()) > 1e-9 * total:  # at least one class is filled in a round
        share = np.where(wanted < room, p, 0)
        wanted = np.minimum(wanted + left * (share / share.sum()), room)
    counts = np.floor(wanted + 1e-9)
    order = np.argsort(counts - wanted, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts.astype(np.int64)
