"""learn2learn's MAML as the engine: `clone`, `adapt`, `backward`, as its users write them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from metalearn.engine import plain_loop
from metalearn.gradients.peers.base import Loss, over_tasks, ready
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, GradientAndMetrics, Kind, Meta, Metrics


@dataclass(frozen=True)
class Learn2learn:
    """The meta-gradient by `learn2learn.algorithms.MAML`; for ANIL, wrapped around the head.

    first_order: FOMAML.

    Raises UsageError without the package, and for what it cannot run: inner rules other than
    gradient descent with a fixed rate, padding, `vmap`, a precision other than fp32.

    Arnold et al.: learn2learn: A Library for Meta-Learning Research, 2020.
    """

    kind: ClassVar[Kind] = "exact"

    first_order: bool = False
    __call__ = plain_loop

    def all_tasks(self, algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> GradientAndMetrics:
        """The mean gradient over T tasks, shaped like `meta`, and metrics `[T]`."""
        plain, rate, package, module, head = ready(self, "learn2learn", algo, meta, episodes)
        maml = package.algorithms.MAML(
            module.get_submodule(head), rate, self.first_order, allow_unused=True, allow_nograd=True
        )

        def one_task(loss: Loss, episodes: Episodes) -> tuple[Tensor, Metrics]:
            net = learner = maml.clone()
            if head:
                module.set_submodule(head, learner)
                net = module
            for _ in range(plain.steps):
                learner.adapt(loss(net, episodes.support)[0])
            return loss(net, episodes.query)

        return over_tasks(plain, algo.net, module, meta, episodes, one_task)
