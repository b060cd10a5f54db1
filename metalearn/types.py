"""The values that pass between the packages: batches, episodes, what is meta-learned.

Letters, here and everywhere: T tasks in a meta-batch, N ways, K shots, S = N*K support
examples, Q query examples, B either of S and Q, *X the shape of one example.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from metalearn.errors import UsageError

Params = dict[str, Tensor]
"""Named tensors. In this library always a flat dict, keyed as `nn.Module.named_parameters`."""

Metrics = dict[str, Tensor]
"""Named measurements: scalars for one task, `[T]` for a meta-batch. `loss` is always there."""

Inputs = Any
"""A Tensor `[B, *X]`, or a dict of them: `{"ids": [B, L], "mask": [B, L]}`."""

Targets = Any
"""A Tensor, class indices `[B]` int64 or values `[B, *Y]` float, or a dict of them:
`{"boxes": [B, M, 4], "labels": [B, M], "valid": [B, M]}`."""

Outputs = Any
"""What a network returns: a Tensor `[B, ...]`, or a dict of them."""


def map_tensors(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`f` of a tensor, or of every tensor of a dict."""
    return {name: f(t) for name, t in value.items()} if isinstance(value, dict) else f(value)


def first_tensor(value: Any) -> Tensor:
    """A tensor itself, or the first one of a dict."""
    return next(iter(value.values())) if isinstance(value, dict) else value


class Batch(NamedTuple):
    """Labelled examples of T tasks, or of one task without the leading T.

    x: `Inputs`, `[T, B, *X]`.
    y: `Targets`, `[T, B]` classes or `[T, B, *Y]` values.
    weight: `[T, B]` float, or None for all ones. 0 marks padding, so that tasks of
        unequal size share one batch: losses, metrics and batch statistics leave it out.
    """

    x: Inputs
    y: Targets
    weight: Tensor | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> "Batch":
        """`f` of every tensor."""
        x, y = map_tensors(f, self.x), map_tensors(f, self.y)
        return Batch(x, y, None if self.weight is None else f(self.weight))

    @property
    def labels(self) -> Tensor:
        """The classes, int64: `y` itself, or of a dict its `label`. Raises UsageError for a dict
        that has none."""
        if not isinstance(self.y, dict):
            return self.y
        if "label" not in self.y:
            raise UsageError(
                f"the targets are {', '.join(self.y)}, and an example has no class of its own; use "
                "algorithm=maml, anil, reptile or protonet, with the loss of its task"
            )
        return self.y["label"]

    @property
    def shape(self) -> torch.Size:
        """`[T, B]`, or `[B]` of one task, with the shape of one example of the first input behind
        it."""
        return first_tensor(self.x).shape

    @property
    def device(self) -> torch.device:
        """Where the first input lies."""
        return first_tensor(self.x).device


class Episodes(NamedTuple):
    """T few-shot tasks: what each adapts on and what it is tested on.

    unlabelled: further inputs of semi-supervised tasks, None without. Its `y` is never read.
    """

    support: Batch
    query: Batch
    unlabelled: Batch | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> "Episodes":
        """`f` of every tensor."""
        rest = None if self.unlabelled is None else self.unlabelled.map(f)
        return Episodes(self.support.map(f), self.query.map(f), rest)

    @property
    def parts(self) -> tuple[Batch, ...]:
        """Support, query and, where there is one, the batch without labels."""
        return tuple(batch for batch in self if batch is not None)

    @property
    def tasks(self) -> int:
        """T."""
        return self.support.shape[0]


class Given(NamedTuple):
    """All that one task may see before it answers.

    unlabelled: inputs without labels, None without. A transductive algorithm finds the queries'
        inputs here, and never their labels: its `y` is zeros.
    """

    support: Batch
    unlabelled: Batch | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> "Given":
        """`f` of every tensor."""
        rest = None if self.unlabelled is None else self.unlabelled.map(f)
        return Given(self.support.map(f), rest)


class Meta(TypedDict):
    """Everything that a meta-algorithm carries from one meta-batch to the next.

    init: the meta-learned starting weights.
    hyper: every other meta-learned tensor (inner rates, temperatures).
    buffers: tensors that no gradient reaches (running statistics of batch norm, and
        `META_STEP` where an algorithm anneals). The gradient of a strategy has `init` and `hyper`
        alone.
    """

    init: Params
    hyper: Params
    buffers: Params


META_STEP = "meta_step"
"""The buffer, a float scalar, that counts the outer loop's steps where an algorithm has it."""


class MetaGradients(TypedDict):
    """The gradient of the outer loss, shaped like the learned part of a `Meta`."""

    init: Params
    hyper: Params


GradientAndMetrics = tuple[MetaGradients, Metrics]
"""Of one task, with scalar metrics; or the mean over T tasks, with metrics `[T]`."""


Kind = Literal["exact", "truncated", "implicit", "displacement", "surrogate"]
"""What a strategy computes, and so what an algorithm has to be made for.

exact: the gradient of the outer loss after K inner steps. truncated: the same without some or
all of the curvature. implicit: that of the inner loss's minimum, which has to be proximal.
displacement: start minus end of the inner loop. surrogate: that of another objective of the same
two loops: the outer loss smoothed by noise, or the distance to a bootstrapped target.
"""
