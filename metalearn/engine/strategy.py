"""What a meta-gradient strategy is, and which algorithms it is for."""

from typing import ClassVar, Protocol, runtime_checkable

from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError, check_whole
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.inner.rules import check_minimum
from metalearn.types import Episodes, GradientAndMetrics, Kind, Meta


class Strategy(Protocol):
    """A recipe for the meta-gradient of one task: a hashable value without options of running.

    kind: what it computes. A strategy that takes Hessian-vector products may say so with
    `hessian_products = True`, so that autotuning tries both ways to take them; one that draws
    noise with `random = True`, so that every task has a seed.
    """

    kind: ClassVar[Kind]

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The gradient of one task, shaped like the learned part of `meta`, and scalar metrics."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """A strategy that is another one in other meta-steps."""

    def at(self, meta_step: int) -> Strategy:
        """The strategy of meta-step `meta_step`, counted from 1."""
        ...


class ForeignStrategy(Protocol):
    """A strategy that runs T tasks itself, on an engine of another package."""

    kind: ClassVar[Kind]

    def all_tasks(self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> GradientAndMetrics:
        """The mean gradient over T tasks, and metrics `[T]`."""
        ...


STRATEGIES: dict[Kind, tuple[str, ...]] = {
    "exact": ("Adjoint", "Unroll", "Checkpointed", "Annealed"),
    "truncated": ("FirstOrder", "Truncated"),
    "implicit": ("Implicit",),
    "displacement": ("Displacement",),
    "surrogate": ("Evolution", "Bootstrapped"),
}
"""The strategies of this package by kind, for messages."""


def lacks_proximal_term(kind: Kind, algo: MetaAlgorithm) -> bool:
    """Whether a strategy of `kind` would fit `algo` if its proximal strength were not 0."""
    return kind == "implicit" and "exact" in algo.kinds and hasattr(algo, "proximal")


def check_algorithm(strategy: Strategy | ForeignStrategy, algo: MetaAlgorithm) -> None:
    """Raise UsageError where `algo`, or its rule, is not defined for the strategy."""
    if strategy.kind not in algo.kinds:
        name = type(strategy).__name__
        if lacks_proximal_term(strategy.kind, algo):
            raise UsageError(f"gradient {name} needs a proximal term; set algorithm.proximal=2")
        fitting = ", ".join(name for kind in algo.kinds for name in STRATEGIES[kind])
        raise UsageError(f"gradient {name} does not fit {type(algo).__name__}; use {fitting}")
    check_minimum(algo.rule, strategy.kind)


_PROTOCOL = (
    *("steps", "rule", "net", "kinds", "transductive", "init", "begin", "inner_loss"),
    *("finish", "outer_loss", "step_weights", "predict"),
)


def check_protocol(algo: MetaAlgorithm) -> None:
    """Raise UsageError where `algo` lacks a part of `MetaAlgorithm`, or its steps are not whole."""
    if missing := [name for name in _PROTOCOL if not hasattr(algo, name)]:
        raise UsageError(
            f"{type(algo).__name__} lacks {', '.join(missing)}; an algorithm has every part of "
            "metalearn.inner.protocol.MetaAlgorithm"
        )
    check_whole("algorithm.steps", algo.steps)
