"""The values that pass between the packages: batches, episodes, what is meta-learned.

Letters, here and everywhere: T tasks in a meta-batch, N ways, K shots, S = N*K support
examples, Q query examples, B either of S and Q, *X the shape of one example.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypedDict

from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors. In this library always a flat dict, keyed as `nn.Module.named_parameters`."""

Metrics = dict[str, Tensor]
"""Named measurements: scalars for one task, `[T]` for a meta-batch. `loss` is always there."""


class Batch(NamedTuple):
    """Labelled examples of T tasks, or of one task without the leading T.

    x: inputs, `[T, B, *X]` float.
    y: class indices `[T, B]` int64, or regression targets `[T, B, *Y]` float.
    weight: `[T, B]` float, or None for all ones. 0 marks padding, so that tasks of
        unequal size share one batch: losses, metrics and batch statistics leave it out.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> "Batch":
        """`f` of every tensor."""
        return Batch(f(self.x), f(self.y), None if self.weight is None else f(self.weight))


class Episodes(NamedTuple):
    """T few-shot tasks: what each adapts on and what it is judged by."""

    support: Batch
    query: Batch

    def map(self, f: Callable[[Tensor], Tensor]) -> "Episodes":
        """`f` of every tensor."""
        return Episodes(self.support.map(f), self.query.map(f))


class Meta(TypedDict):
    """Everything that a meta-algorithm carries from one meta-batch to the next.

    init: the meta-learned starting weights.
    hyper: every other meta-learned tensor (inner rates, temperatures).
    buffers: tensors that no gradient reaches (running statistics of batch norm). The
        gradient of a strategy has `init` and `hyper` alone.
    """

    init: Params
    hyper: Params
    buffers: Params


class MetaGradients(TypedDict):
    """The gradient of the outer loss, shaped like the learned part of a `Meta`."""

    init: Params
    hyper: Params


Kind = Literal["exact", "truncated", "implicit", "displacement"]
"""What a strategy computes, and so what an algorithm has to be made for.

exact: the gradient of the outer loss after K inner steps. truncated: the same without some or
all of the curvature. implicit: that of the inner loss's minimum, which has to be proximal.
displacement: start minus end of the inner loop.
"""
