"""When a run of meta-training prunes what: a pure function of the number of the meta-step, of the
weights, and for SNIP of that step's meta-gradient. A resumed run makes the same masks.

Pruned are matrices and kernels that the outer loop learns, those of the head aside. Weights are
selected by validation from the step on at which the last sparsity is reached and stays.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from metalearn.errors import UsageError, check_whole
from metalearn.functional.masks import (
    MASK,
    held,
    kept_highest,
    magnitudes,
    masks_of,
    ones,
    prunable,
)
from metalearn.types import Meta, MetaGradients, Params


class Pruning(Protocol):
    """A schedule. wants_gradient: whether `masks` looks at the meta-gradient of the step."""

    sparsity: float
    wants_gradient: ClassVar[bool]

    def done(self) -> int:
        """The first meta-step, counted from 1, from which on the masks are the last ones."""
        ...

    def due(self, step: int) -> bool:
        """Whether the masks change before meta-step `step`."""
        ...

    def masks(self, step: int, meta: Meta, gradient: MetaGradients | None) -> Params:
        """Those of the prunable weights from meta-step `step` on, where they are `due`."""
        ...


def _check(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise UsageError(f"pruning.sparsity={sparsity} must be 0 or more, and below 1")


@dataclass(frozen=True)
class Magnitude:
    """The smallest weights go, more of them each time.

        s_t = s + (0 - s) (1 - (t - begin) / (end - begin))^3,   t = begin, begin + every, ..., end

    of all weights together, or of each layer (`per_layer`). `end = begin` prunes once. Raises
    UsageError for a sparsity of 1 or more, or steps out of order.

    Zhu, Gupta: To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression,
    2018, eq. 1; by magnitude Han, Pool, Tran, Dally 2015.
    """

    sparsity: float = 0.9
    begin: int = 1
    end: int = 500
    every: int = 50
    per_layer: bool = False
    wants_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.sparsity)
        for name in ("begin", "end", "every"):
            check_whole(f"pruning.{name}", getattr(self, name), 1)
        if self.end < self.begin:
            raise UsageError(f"pruning.end={self.end} must be pruning.begin={self.begin} or more")

    def done(self) -> int:
        return self.end

    def due(self, step: int) -> bool:
        inside = self.begin <= step <= self.end
        return inside and (step == self.end or (step - self.begin) % self.every == 0)

    def at(self, step: int) -> float:
        """The sparsity that is reached before meta-step `step`, where it is due."""
        if self.end == self.begin:
            return self.sparsity
        left = 1 - (step - self.begin) / (self.end - self.begin)
        return self.sparsity * (1 - left**3)

    def masks(self, step: int, meta: Meta, gradient: MetaGradients | None) -> Params:
        names = list(masks_of(meta["buffers"]))
        return kept_highest(magnitudes(meta, names), self.at(step), self.per_layer)


@dataclass(frozen=True)
class SNIP:
    """Before the first meta-step the weights go whose connection matters least to its loss.

        s = |theta * dL / dtheta|                                                    (eq. 4, 5)

    L the query loss of the first meta-batch, its gradient the strategy's, through the inner loop.
    Raises UsageError for a sparsity of 1 or more.

    Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning Based on Connection Sensitivity, 2019.
    """

    sparsity: float = 0.9
    per_layer: bool = False
    wants_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.sparsity)

    def done(self) -> int:
        return 1

    def due(self, step: int) -> bool:
        return step == 1

    def masks(self, step: int, meta: Meta, gradient: MetaGradients | None) -> Params:
        assert gradient is not None
        slopes, init = gradient["init"], meta["init"]
        scores = {n: (init[n] * slopes[n]).abs() for n in masks_of(meta["buffers"])}
        return kept_highest(scores, self.sparsity, self.per_layer)


@dataclass(frozen=True)
class IterativeHardThresholding:
    """Turns of a sparse and a dense phase: the smallest weights of each layer go and the others are
    trained; then all are, the pruned ones from 0. Before meta-step `end` they go for good.

    turns: that share the steps before `end`. dense: the share of a turn that is dense.

    Made for Reptile (algorithm=reptile), right for any algorithm. Raises UsageError for a sparsity
    of 1 or more, or a share that is none.

    Tian, Liu, Yuan, Liu: Meta-Learning with Network Pruning, 2020, section 3.
    """

    sparsity: float = 0.5
    end: int = 500
    turns: int = 2
    dense: float = 0.3
    per_layer: bool = True
    wants_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.sparsity)
        for name in ("end", "turns"):
            check_whole(f"pruning.{name}", getattr(self, name), 1)
        if not 0 <= self.dense < 1:
            raise UsageError(f"pruning.dense={self.dense} must be 0 or more, and below 1")

    def done(self) -> int:
        return self.end

    def _change(self, step: int) -> str | None:
        """What begins with `step`: "sparse", "dense", None for nothing."""
        length = (self.end - 1) // self.turns
        if step >= self.end or step > length * self.turns:
            return "sparse" if step == self.end else None
        places = {0: "sparse", length - int(length * self.dense): "dense"}
        return places.get((step - 1) % length)

    def due(self, step: int) -> bool:
        return self._change(step) is not None

    def masks(self, step: int, meta: Meta, gradient: MetaGradients | None) -> Params:
        names = list(masks_of(meta["buffers"]))
        if self._change(step) == "dense":
            return ones(meta, names)
        return kept_highest(magnitudes(meta, names), self.sparsity, self.per_layer)


def begun(meta: Meta, head: str | None) -> Meta:
    """`meta` with a mask of ones for each weight that may be pruned. Raises UsageError where there
    is none."""
    masks = ones(meta, prunable(meta, head))
    buffers = {**meta["buffers"], **{MASK + name: mask for name, mask in masks.items()}}
    return Meta(init=meta["init"], hyper=meta["hyper"], buffers=buffers)


def prune_(pruning: Pruning, step: int, meta: Meta, gradient: MetaGradients | None) -> None:
    """Give `meta` the masks of meta-step `step`, and set what they prune to 0, in place."""
    found = pruning.masks(step, meta, gradient)
    meta["buffers"] = {**meta["buffers"], **{MASK + name: mask for name, mask in found.items()}}
    held(meta)
