"""What a meta-algorithm is: how one task starts, what it descends on, what it is tested by."""

from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from metalearn.functional import PureModule
from metalearn.inner.rules import InnerRule
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Outputs, Params


class MetaAlgorithm(Protocol):
    """One task, no T. Every method is pure, and differentiable in `meta` and `fast`.

    steps: K, inner steps in training; 0 for metric methods.
    rule: the inner optimizer; unused where `steps` is 0.
    net: the network made pure; the outer loop moves its running averages.
    kinds: of meta-gradient that the method is defined for, the usual one first.
    transductive: whether it sees the queries' inputs before it answers; marked beside every
        result.
    """

    @property
    def steps(self) -> int: ...
    @property
    def rule(self) -> InnerRule: ...
    @property
    def net(self) -> PureModule: ...
    @property
    def kinds(self) -> tuple[Kind, ...]: ...
    @property
    def transductive(self) -> bool: ...

    def init(self) -> Meta:
        """Everything meta-learned at its start: the module's own weights, rates, temperatures."""
        ...

    def begin(self, meta: Meta, given: Given) -> Params:
        """What the inner loop starts from: fast weights, or prototypes."""
        ...

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """The scalar that inner step `step`, counted from 0, descends on."""
        ...

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """`fast` after `step` inner steps with whatever else the queries need: the support set's
        batch statistics, the norm weights of this step; `fast` itself where they need nothing."""
        ...

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The query loss, a scalar, and scalar metrics with `loss` among them."""
        ...

    def step_weights(self, meta: Meta) -> Tensor | None:
        """The weights `[K + 1]` of the query loss after 0, 1, ..., K inner steps in the outer
        loss; None for the last alone. Whether it is None never changes."""
        ...

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Outputs:
        """Logits `[B, N]` or values `[B, *Y]` for `x` `[B, *X]`."""
        ...


EXACT: tuple[Kind, ...] = ("exact", "truncated", "surrogate")
"""Of an algorithm whose outer loss can be differentiated through its inner steps."""


class OnFeatures(NamedTuple):
    """An algorithm on features that no inner step changes.

    path: the submodule of `net` whose input the features are; None where they are what the whole
        network returns, flattened.
    algo: the same algorithm, with features in the place of inputs.
    """

    path: str | None
    algo: MetaAlgorithm


@runtime_checkable
class FrozenBody(Protocol):
    """An algorithm that may say that its inner loop leaves the body of the network alone."""

    def on_features(self) -> OnFeatures | None:
        """Itself on features; None where an inner step would change them."""
        ...


class Plain(NamedTuple):
    """An algorithm that other packages' engines can run: both losses are `loss` of the network's
    outputs, and the inner loop moves `adapting` (None: all weights) by `rule`."""

    module: nn.Module
    loss: Callable[[Tensor, Batch], tuple[Tensor, Metrics]]
    rule: InnerRule
    steps: int
    adapting: Collection[str] | None


@runtime_checkable
class HasPlain(Protocol):
    """An algorithm that may be plain MAML, or ANIL, for other packages' engines."""

    def plain(self) -> Plain | None:
        """Itself for another engine; None where that could not run it."""
        ...


@runtime_checkable
class TracksBuffers(Protocol):
    """An algorithm that moves its buffers after a meta-step itself, in the place of
    `net.track`."""

    def track(self, meta: Meta, support: Batch) -> Params:
        """The new `buffers`. support: of all tasks, `[T, S, *X]`; with ranks of each rank's own,
        and what has moved is averaged."""
        ...


@runtime_checkable
class OfTasks(Protocol):
    """An algorithm without inner steps that may measure T tasks at once without `vmap`, which
    takes less time where nothing is differentiated."""

    @property
    def of_tasks(self) -> bool:
        """Whether it does."""
        ...

    def measured(self, meta: Meta, given: Given, query: Batch) -> Metrics:
        """The metrics of `outer_loss` for T tasks, `[T]`; all but `meta` has a leading T."""
        ...


def on_features(algo: MetaAlgorithm) -> OnFeatures | None:
    """What `algo` says of features, None where it says nothing."""
    return algo.on_features() if isinstance(algo, FrozenBody) else None
