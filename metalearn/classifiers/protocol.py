"""What a few-shot classifier is: the features of one task's support set in, logits out."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Batch, Params


class Classifier(Protocol):
    """One task, no T. Pure, and differentiable in `hyper` and in the features.

    transductive: whether `fit` looks at the queries' features; marked beside every result.
    of_tasks: True for one whose `fit` and `logits` also take T tasks at once, every tensor with a
        leading T, which saves `vmap` where nothing is differentiated; their columns are then as
        many as the task of most ways has.
    """

    @property
    def transductive(self) -> bool: ...

    def hyper(self, features: int | None) -> Params:
        """What is meta-learned (a temperature, lambda) at its start, in float64.

        features: D, None where it is not known.
        """
        ...

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """What the support set's features `[S, D]` make of the classes.

        unlabelled: features `[U, D]` whose y nobody looks at; for a transductive classifier the
            queries. In both, examples of weight 0 are padding.
        """
        ...

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`: one column a class, `absent` from N on."""
        ...


def positive(name: str, value: float) -> None:
    """Raise UsageError where `value` is not above 0 and finite."""
    if not 0 < value < math.inf:
        raise UsageError(f"{name}={value} must be above 0")


def at_least(low: int, **values: float) -> None:
    """Raise UsageError for a value below `low`."""
    for name, value in values.items():
        if not value >= low:
            raise UsageError(f"{name}={value} must be {low} or more")


def log_of(value: float) -> Tensor:
    """log of a value that is learned on a scale where it stays above 0."""
    return torch.tensor(math.log(value), dtype=torch.float64)


def log_temperature(value: float, learned: bool) -> Params:
    """`log_temperature` where it is meta-learned, or nothing."""
    return {"log_temperature": log_of(value)} if learned else {}


def temperature(hyper: Params, value: float) -> Tensor | float:
    """What divides the logits: the learned one where there is one, or `value`."""
    log = hyper.get("log_temperature")
    return value if log is None else log.exp()


@runtime_checkable
class UsesMembers(Protocol):
    """A classifier that is told, once and before any task, which features are of which member of
    an ensemble."""

    def with_members(self, widths: Sequence[int]) -> Classifier:
        """The same for members of so many features each, in their order."""
        ...


@runtime_checkable
class UsesBaseClasses(Protocol):
    """A classifier that is told, once and before any task, of the classes that the network was
    trained on. Without them it works too, less well."""

    def with_base(self, features: Tensor, labels: Tensor) -> Classifier:
        """The same with what it keeps of their features `[n, D]` and classes, int64 `[n]`."""
        ...


def number_of(features: int | None, name: str) -> int:
    """D. Raises UsageError where it is not known."""
    if features is None:
        raise UsageError(f"{name} learns weights for D features; give Metric(features=D)")
    return features


def drawn(seed: int) -> Callable[..., Tensor]:
    """Draws the starting weights of a classifier: (*shape, bound) -> uniform in +-bound."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, bound: float) -> Tensor:
        return bound * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)

    return uniform
