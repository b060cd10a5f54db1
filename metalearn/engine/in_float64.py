"""`Engine(check="float64")`: now and then one task again in float64, to see how far off it was.

A ReLU or a maximum that rounding flips changes a term of the derivative, and every inner step takes
that on. With ReLUs and max pooling a task's float32 meta-gradient is far off now and then after a
few steps, in every engine that is right, plain autograd included. A network without kinks has no
such tasks. How many there are: `benchmarks.rounding.off_tasks`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError
from metalearn.functional.precision import Precision
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Meta, MetaGradients

Check = Literal["none", "float64"]

EVERY = 10
"""Calls of which one is followed by a look."""
OFF = 0.05
"""The relative error from which on a task's meta-gradient counts as off."""


def check_check(check: str) -> None:
    """Raise UsageError for a value that is not known."""
    if check not in get_args(Check):
        raise UsageError(f"check={check!r} is not known; use {' or '.join(get_args(Check))}")


@dataclass
class Sample:
    """The tasks that were looked at. errors: |g - g64| / |g64| of each, over all that is learned.
    fresh: whether the last call was followed by a look."""

    errors: list[float] = field(default_factory=list)
    calls: int = 0
    fresh: bool = False

    def take(
        self,
        engine: Callable[[Precision], Any],
        precision: Precision,
        strategy: Any,
        algo: MetaAlgorithm,
        meta: Meta,
        episodes: Episodes,
    ) -> None:
        """Look at one task of `episodes` in every tenth call, the first among them, another one
        each time.

        engine: of a precision, one that compiles nothing.
        """
        self.fresh = self.calls % EVERY == 0
        number, self.calls = self.calls // EVERY % max(episodes.tasks, 1), self.calls + 1
        if not self.fresh or not episodes.tasks:
            return
        one = episodes.map(lambda t: t[number : number + 1])
        wide = tree.map_meta(_double, meta)
        with torch.random.fork_rng():
            torch.manual_seed(number)
            got = engine(precision)(strategy, algo, meta, one)[0]
            torch.manual_seed(number)  # what is drawn follows seeds of the tasks
            want = engine("fp32")(strategy, algo, wide, one.map(_double))[0]
        self.errors.append(relative_error(got, want))

    @property
    def off(self) -> int:
        """How many of the tasks were off."""
        return sum(not error <= OFF for error in self.errors)

    def record(self) -> dict[str, float]:
        """For a curve: the error of the task that was just looked at, and the share that was off so
        far; nothing where none was."""
        if not (self.fresh and self.errors):
            return {}
        return {"float64_error": self.errors[-1], "float64_off": self.off / len(self.errors)}

    def __str__(self) -> str:
        return (
            f"float64: {self.off} of {len(self.errors)} tasks had a meta-gradient that is off by "
            f"more than {OFF:.0%}, the largest by {max(self.errors, default=0.0):.1%}"
        )


def relative_error(got: MetaGradients, want: MetaGradients) -> float:
    """|got - want| / |want| over all of both, in float64; 0 where both are."""
    pairs = [(got[p][n].double(), want[p][n]) for p in ("init", "hyper") for n in want[p]]
    distance = sum(((g - w) ** 2).sum() for g, w in pairs)
    length = sum((w**2).sum() for _, w in pairs)
    return float(torch.as_tensor(distance / length if length else distance).sqrt())


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t
