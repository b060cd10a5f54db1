"""What a meta-gradient strategy is, and what all of them are asked."""

from typing import TYPE_CHECKING, Literal, Protocol

from metalearn.errors import UsageError
from metalearn.types import Episodes, Meta, MetaGradients, Metrics

if TYPE_CHECKING:
    from metalearn.algorithms.base import MetaAlgorithm

Batching = Literal["auto", "loop", "vmap"] | int
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


class MetaGradient(Protocol):
    """A value that turns an algorithm and T tasks into the gradient of the mean outer loss."""

    def __call__(
        self, algo: "MetaAlgorithm", meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The gradient, shaped like `meta`, and metrics `[T]`.

        episodes: support `[T, S, *X]`, query `[T, Q, *X]`.
        """
        ...


class Strategy(Protocol):
    """What every strategy says of how it runs."""

    @property
    def batching(self) -> Batching: ...
    @property
    def precision(self) -> Precision: ...


def check_algorithm(strategy: Strategy, algo: "MetaAlgorithm") -> None:
    """Raise UsageError where `algo` is not defined for the strategy."""
    name = type(strategy).__name__
    if name not in algo.strategies:
        fitting = " or ".join(algo.strategies)
        raise UsageError(f"gradient {name} does not fit {type(algo).__name__}; use {fitting}")
