"""Adversarial querying: the queries of a task are attacked, its support set is not.

    min over theta of  sum over tasks of  max over |d| <= epsilon of  L_query(theta_K, x + d)

The inner loop adapts on natural images; the attack moves the queries against the adapted weights,
by projected gradient descent in the maximum norm:

    x <- clip to [x_0 - epsilon, x_0 + epsilon] and [0, 1] of  x + size * sign(grad_x L_query)

The gradient for the pixels is that through the adapted network as it is used, exact, with the
batch statistics where the norm layers take them. It does not reach the fast weights: those do not
depend on the queries. Where a transductive algorithm saw the queries, it saw the natural ones,
and the attack does not pass through what it made of them.

Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial
Attacks, 2018. Goldblum, Fowl, Goldstein: Adversarially Robust Few-Shot Learning: A Meta-Learning
Approach, 2020, section 4 (adversarial querying).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn import tree
from metalearn.errors import UsageError, check_whole
from metalearn.functional.autodiff import gradient_at
from metalearn.functional.dropout import random_bits
from metalearn.inner.around import Around
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Batch, Meta, Metrics, Params


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent in the maximum norm.

    epsilon: how far a pixel moves at most, of [0, 1]. steps: 1 or more. size: of a step; None for
    2.5 * epsilon / steps (Madry et al. 2018, section 5). start: "random", uniform within epsilon by
    a fixed seed, or "natural", the image. mean, std: what the images were normalised by, as
    `ImageTransform` has it; None where they are in [0, 1].

    Raises UsageError for numbers out of range.
    """

    epsilon: float = 8 / 255
    steps: int = 20
    size: float | None = None
    start: str = "random"
    seed: int = 0
    mean: Sequence[float] | float | None = field(default=None, repr=False)
    std: Sequence[float] | float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("epsilon", "size"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"adversarial.{name}={value} must be above 0, and 1 or less")
        check_whole("adversarial.steps", self.steps, 1)
        if self.start not in ("random", "natural"):
            raise UsageError(f"adversarial.start={self.start} is not known; use random or natural")

    @property
    def step(self) -> float:
        """How far a pixel moves in a step."""
        return 2.5 * self.epsilon / self.steps if self.size is None else self.size

    def __call__(self, algo: MetaAlgorithm, meta: Meta, fast: Params, query: Batch) -> Batch:
        """`query` attacked: the images that `algo` answers worst under `fast`, which is finished.

        They are constants: no gradient goes back through how they were found.
        """
        if not isinstance(query.x, Tensor) or query.x.ndim != 4:
            raise UsageError("adversarial queries are images; use adversarial=null")
        whole = Meta(
            init=tree.detach(meta["init"]),
            hyper=tree.detach(meta["hyper"]),
            buffers=meta["buffers"],
        )
        fast, natural = tree.detach(fast), query.x.detach()
        mean, scale = self._normalised(natural)
        lowest, highest = -mean / scale, (1 - mean) / scale
        low = torch.maximum(natural - self.epsilon / scale, lowest)
        high = torch.minimum(natural + self.epsilon / scale, highest)

        def loss(x: Tensor) -> Tensor:
            return algo.outer_loss(whole, fast, query._replace(x=x))[0]

        x = natural
        if self.start == "random":
            seed = torch.tensor(self.seed, device=natural.device)
            noise = 2 * random_bits(seed, natural.shape).to(natural) / 2**32 - 1
            x = torch.minimum(torch.maximum(x + noise * self.epsilon / scale, low), high)
        for _ in range(self.steps):
            (slope,) = gradient_at(loss, x)
            x = x + slope.detach().sign() * (self.step / scale)
            x = torch.minimum(torch.maximum(x, low), high).detach()
        return query._replace(x=x)

    def _normalised(self, like: Tensor) -> tuple[Tensor, Tensor]:
        def each(value: Any, usual: float) -> Tensor:
            values = usual if value is None else value
            return torch.as_tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

        return each(self.mean, 0.0), each(self.std, 1.0)


@dataclass(frozen=True, eq=False)
class AdversarialQuerying(Around):
    """`algo`, judged on attacked queries.

    The outer loss is theirs, and `robust_accuracy` their accuracy; every other metric is that of
    the natural queries, by which weights are selected too.
    """

    algo: MetaAlgorithm
    attack: PGD

    @property
    def adapting(self) -> Collection[str] | None:
        """The names of the weights that adapt, where the algorithm says so."""
        return getattr(self.algo, "adapting", None)

    @property
    def of_classes(self) -> bool:
        """Whether labels are classes."""
        return getattr(self.algo, "of_classes", False)

    @property
    def ways(self) -> int | None:
        """The most classes of a task, where that is known."""
        return getattr(self.algo, "ways", None)

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The loss of the attacked queries."""
        attacked = self.attack(self.algo, meta, fast, query)
        loss, robust = self.algo.outer_loss(meta, fast, attacked)
        natural = self.algo.outer_loss(meta, fast, query)[1]
        metrics = {**tree.detach(natural), "robust_loss": robust["loss"]}
        if "accuracy" in robust:
            metrics["robust_accuracy"] = robust["accuracy"]
        return loss, metrics


def natural(algo: MetaAlgorithm) -> MetaAlgorithm:
    """`algo` judged on queries as they are."""
    return algo.algo if isinstance(algo, AdversarialQuerying) else algo


def adversarial(algo: MetaAlgorithm, attack: PGD | None) -> MetaAlgorithm:
    """`algo` judged on queries that `attack` moved; itself for None."""
    return algo if attack is None else AdversarialQuerying(algo, attack)
