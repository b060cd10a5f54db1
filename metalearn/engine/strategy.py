"""What a meta-gradient strategy is, and what all of them are asked."""

from typing import ClassVar, Literal, Protocol

from metalearn.engine.plan import Batching
from metalearn.errors import UsageError
from metalearn.functional.precision import Precision
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Kind, Meta, MetaGradients, Metrics

Capture = Literal["none", "graph", "compile"]
"""On a CUDA device: nothing, the meta-gradient as one graph, or its compiled pieces in one."""


class MetaGradient(Protocol):
    """A value that turns an algorithm and T tasks into the gradient of the mean outer loss."""

    def __call__(
        self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
    ) -> tuple[MetaGradients, Metrics]:
        """The gradient, shaped like `meta`, and metrics `[T]`.

        episodes: support `[T, S, *X]`, query `[T, Q, *X]`.
        """
        ...


class Strategy(Protocol):
    """What every strategy of this package says of how it runs."""

    kind: ClassVar[Kind]

    @property
    def batching(self) -> Batching: ...
    @property
    def precision(self) -> Precision: ...
    @property
    def capture(self) -> Capture: ...


STRATEGIES: dict[Kind, tuple[str, ...]] = {
    "exact": ("Adjoint", "Unroll", "Checkpointed"),
    "truncated": ("FirstOrder", "Truncated"),
    "implicit": ("Implicit",),
    "displacement": ("Reptile",),
}
"""The strategies of this package by kind, for messages."""


def lacks_proximal_term(kind: Kind, algo: MetaAlgorithm) -> bool:
    """Whether a strategy of `kind` would fit `algo` if its proximal strength were not 0."""
    return kind == "implicit" and "exact" in algo.kinds and hasattr(algo, "proximal")


def check_algorithm(strategy: Strategy, algo: MetaAlgorithm) -> None:
    """Raise UsageError where `algo` is not defined for the strategy."""
    if strategy.kind not in algo.kinds:
        name = type(strategy).__name__
        if lacks_proximal_term(strategy.kind, algo):
            raise UsageError(f"gradient {name} needs a proximal term; set algorithm.proximal=2")
        fitting = ", ".join(name for kind in algo.kinds for name in STRATEGIES[kind])
        raise UsageError(f"gradient {name} does not fit {type(algo).__name__}; use {fitting}")
