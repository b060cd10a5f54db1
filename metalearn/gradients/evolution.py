"""The meta-gradient without derivatives of the outer loss: evolution strategies.

    grad of E[F(meta + sigma * e)] for meta,  e standard normal,
    = E[(F(meta + sigma * e) - F(meta - sigma * e)) * e] / (2 * sigma)    (algorithm 3, antithetic)

with F the query loss after K inner steps. Unbiased for the smoothed objective, and of a quadratic
that has the gradient of F itself. Its variance grows with the number of weights; memory is that of
one inner step, and F needs no second derivative.

Song, Gao, Yang, Choromanski, Pacchiano, Tang: ES-MAML: Simple Hessian-Free Meta Learning, 2020.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metalearn import tree
from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError
from metalearn.functional.dropout import fold, random_bits
from metalearn.functional.masks import masked, masks_of
from metalearn.gradients.steps import query_loss
from metalearn.inner.loop import detached_gradient, trajectory
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Kind, Meta, MetaGradients, Metrics


def normal(seed: Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape of `like`, a function of `seed` (Box, Muller 1958)."""
    uniform = (random_bits(seed, (2, *like.shape)).double() + 0.5) / 2**32
    radius, angle = (-2 * uniform[0].log()).sqrt(), 2 * math.pi * uniform[1]
    return (radius * angle.cos()).to(like)


def adapted_loss(algo: MetaAlgorithm, meta: Meta, task: Task) -> tuple[Tensor, Metrics]:
    """F: the weighted query loss, and the metrics after the last step."""
    path = trajectory(algo, meta, task.given, algo.steps, task.seed, detached_gradient)
    weighted, total = algo.step_weights(meta) is not None, []
    for step, (fast, _) in enumerate(path):
        if weighted or step == algo.steps:
            loss, metrics = query_loss(algo, meta, fast, task, step)
            total.append(loss)
    return torch.stack(total).sum(), metrics  # the last step's


def antithetic(
    algo: MetaAlgorithm, meta: Meta, task: Task, sigma: float, pairs: int
) -> GradientAndMetrics:
    """One task: the mean over `pairs` directions, and the metrics at `meta` itself."""
    assert task.seed is not None  # the engine's, where a strategy is random
    parts = ("init", "hyper")
    learned = [(part, name) for part in parts for name in meta[part]]
    masks = masks_of(meta["buffers"])
    start = {part: tree.zeros_like(meta[part]) for part in parts}
    gradient = MetaGradients(init=start["init"], hyper=start["hyper"])
    for pair in range(pairs):
        noise = {p: dict[str, Tensor]() for p in parts}
        for number, (part, name) in enumerate(learned):
            seed = fold(fold(task.seed, pair), number)
            noise[part][name] = normal(seed, meta[part][name])
        noise["init"] = masked(noise["init"], masks)
        values = []
        for size in (sigma, -sigma):
            moved = (tree.add(meta[part], tree.scale(noise[part], size)) for part in parts)
            there = Meta(**dict(zip(parts, moved, strict=True)), buffers=meta["buffers"])
            values.append(adapted_loss(algo, there, task)[0])
        slope: Tensor = (values[0] - values[1]) / (2 * sigma * pairs)
        for part in parts:
            gradient[part] = tree.map(
                lambda g, e, slope=slope: g + slope * e, gradient[part], noise[part]
            )
    return gradient, adapted_loss(algo, meta, task)[1]


@dataclass(frozen=True)
class Evolution:
    """Antithetic evolution strategies over everything that is learned.

    sigma: of the noise, above 0. pairs: directions a task, 1 or more; each costs two adaptations.
    Raises UsageError. Metrics are those without noise.
    """

    sigma: float = 0.05
    pairs: int = 20
    kind: ClassVar[Kind] = "surrogate"
    random: ClassVar[bool] = True
    __call__ = plain_loop

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf or self.pairs < 1:
            told = f"gradient.sigma={self.sigma} must be above 0"
            raise UsageError(f"{told}, and gradient.pairs={self.pairs} 1 or more")

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """The estimate of one task, shaped like `meta`, and its metrics."""
        return run(antithetic, algo, meta, task, sigma=self.sigma, pairs=self.pairs)
