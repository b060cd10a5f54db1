"""higher's patched module and differentiable SGD as the engine, as its users write them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metalearn.engine import plain_loop
from metalearn.gradients.peers.base import Loss, over_tasks, ready
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, GradientAndMetrics, Kind, Meta, Metrics


def constant(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The inner gradients without history: FOMAML.

    `track_higher_grads=False` would cut the adapted weights from the starting ones altogether.
    """
    return [None if gradient is None else gradient.detach() for gradient in gradients]


@dataclass(frozen=True)
class Higher:
    """The meta-gradient by `higher.innerloop_ctx`; for ANIL, with SGD on the head alone.

    first_order: FOMAML.

    Raises UsageError without the package, and for what it cannot run: inner rules other than
    gradient descent with a fixed rate, padding, `vmap`, a precision other than fp32.

    Grefenstette et al.: Generalized Inner Loop Meta-Learning, 2019.
    """

    kind: ClassVar[Kind] = "exact"

    first_order: bool = False
    __call__ = plain_loop

    def all_tasks(self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> GradientAndMetrics:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        plain, rate, package, module, head = ready(self, "higher", algo, meta, episodes)
        optimizer = torch.optim.SGD(module.get_submodule(head).parameters(), lr=rate)
        callback = constant if self.first_order else None

        def one_task(loss: Loss, episodes: Episodes) -> tuple[Tensor, Metrics]:
            context = package.innerloop_ctx(
                module, optimizer, copy_initial_weights=False, track_higher_grads=True
            )
            with context as (net, inner):
                for _ in range(plain.steps):
                    inner.step(loss(net, episodes.support)[0], grad_callback=callback)
                return loss(net, episodes.query)

        return over_tasks(plain, algo.net, module, meta, episodes, one_task)
