"""One outer step: a meta-batch to a gradient to new meta-learned weights."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metalearn import tree
from metalearn.engine import Engine
from metalearn.engine.ranks import Ranks
from metalearn.engine.strategy import ForeignStrategy, Strategy
from metalearn.errors import RankLost, UsageError
from metalearn.functional.masks import MASK, held
from metalearn.inner.protocol import MetaAlgorithm, TracksBuffers
from metalearn.types import META_STEP, Batch, Episodes, Meta, MetaGradients, Metrics, Params


class Outer:
    """A torch optimizer and schedule over everything meta-learned.

    meta: its tensors are updated in place from here on.
    optimizer: makes the optimizer from a list of tensors. schedule: makes a scheduler from the
        optimizer; stepped once a meta-step. clip_norm: largest Euclidean norm of the whole
        meta-gradient. skip_overflow: leave the weights as they are where the meta-gradient is
        not finite, as float16 makes it now and then; `skipped` counts these steps in a row.
    sharpness: how far up the meta-gradient `init` is moved before the one that is followed is
        taken; 0 for not at all. Each meta-step then costs two.

    Raises UsageError for a sharpness below 0, or of no starting weights.
    """

    def __init__(
        self,
        meta: Meta,
        optimizer: Callable[[list[Tensor]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        clip_norm: float | None = None,
        skip_overflow: bool = False,
        sharpness: float = 0.0,
    ):
        if not isinstance(sharpness, int | float) or not 0 <= sharpness < math.inf:
            raise UsageError(f"outer.sharpness={sharpness} must be 0 or more")
        if sharpness and not meta["init"]:
            raise UsageError(
                f"outer.sharpness={sharpness} moves the starting weights, and there are none that "
                "are learned; use outer.sharpness=0"
            )
        self.sharpness = sharpness
        self.names = [(part, name) for part in ("init", "hyper") for name in meta[part]]
        self.learned = [meta[part][name] for part, name in self.names]
        self.optimizer = optimizer(self.learned)
        self.schedule = schedule(self.optimizer) if schedule else None
        self.clip_norm = clip_norm
        self.skip_overflow = skip_overflow
        self.skipped = 0

    @property
    def learning_rate(self) -> float:
        """The rate that the next step will use."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, gradient: MetaGradients) -> Tensor:
        """Apply one meta-gradient; returns its norm before clipping, a scalar."""
        for (part, name), weight in zip(self.names, self.learned, strict=True):
            weight.grad = gradient[part][name]
        limit = math.inf if self.clip_norm is None else self.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.learned, limit)
        self.skipped = self.skipped + 1 if self.skip_overflow and not norm.isfinite() else 0
        if not self.skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule is not None:
            with warnings.catch_warnings():
                if self.skipped:  # torch warns of a first step that the optimizer did not take
                    warnings.simplefilter("ignore")
                self.schedule.step()
        return norm

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, tensors and plain values mixed."""
        schedule = self.schedule.state_dict() if self.schedule else None
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])


def sharpened(meta: Meta, gradient: MetaGradients, radius: float) -> Meta:
    """`meta` with `init` moved by `radius` along its gradient.

    Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization, 2021, eq. 2; of a
    meta-gradient Abbas, Xiao, Chen, Chen, Chen: Sharp-MAML, 2022.
    """
    slope = gradient["init"]
    size = torch.stack([g.square().sum() for g in slope.values()]).sum().sqrt()
    factor = radius / size.clamp(min=1e-12)
    moved = {name: w.detach() + factor * slope[name] for name, w in meta["init"].items()}
    return Meta(init=moved, hyper=meta["hyper"], buffers=meta["buffers"])


def _tracked(ranks: Ranks, algo: MetaAlgorithm, meta: Meta, support: Batch, share: float) -> Params:
    """The buffers after the support sets of all ranks. share: how much this one's count."""
    if not isinstance(algo, TracksBuffers):
        x, _, weight = support.map(lambda t: t.flatten(0, 1))
        together = partial(ranks.moments, idle=not share)
        init = tree.detach(meta["init"])
        return algo.net.track(init, meta["buffers"], x, weight, together)
    buffers = algo.track(meta, support)
    before = meta["buffers"]
    moved = [n for n, t in buffers.items() if t is not before.get(n) and t.is_floating_point()]
    if ranks.size == 1 or not moved:
        return buffers
    own = [buffers[name] * share if share else torch.zeros_like(buffers[name]) for name in moved]
    return {**buffers, **dict(zip(moved, ranks.summed(own), strict=True))}


_REHEARSED = 5000  # steps of a schedule


def rehearse(outer: Outer, steps: int) -> None:
    """Take one step of `outer`, which is not used again, and `steps` of its schedule, or as many
    as take no time, so that what they raise is raised before training."""
    gradient = MetaGradients(init={}, hyper={})
    for (part, name), weight in zip(outer.names, outer.learned, strict=True):
        gradient[part][name] = torch.full_like(weight, 1e-3)
    outer.step(gradient)
    if outer.schedule is not None:
        for _ in range(min(steps, _REHEARSED) - 1):
            outer.schedule.step()
    outer.state()


def meta_step(
    engine: Engine,
    strategy: Strategy | ForeignStrategy,
    algo: MetaAlgorithm,
    outer: Outer,
    meta: Meta,
    episodes: Episodes,
    tasks: int | None = None,
) -> Metrics:
    """Update `meta` in place by one meta-batch; returns metrics `[T]` and scalar `grad_norm`.

    episodes, tasks: as the engine takes them. With ranks every rank calls it, and has the same
    `meta` after it; RankLost where another has ended, `midway` where `meta` has changed by then.

    Running averages of norm layers, if there are any, follow the support set's inputs under the
    starting weights, or as the algorithm's own `track` says. `META_STEP` is counted where an
    algorithm has it. Metrics are those of `meta`, whatever the sharpness.
    """
    ranks = engine.ranks or Ranks()
    if tasks is None:
        tasks, episodes = episodes.tasks, ranks.part(episodes)
    direction, metrics = engine(strategy, algo, meta, episodes, tasks)
    if outer.sharpness:
        above = sharpened(meta, direction, outer.sharpness)
        direction, _ = engine(strategy, algo, above, episodes, tasks)
    norm = outer.step(direction)
    try:
        buffers = _tracked(ranks, algo, meta, episodes.support, len(ranks.share(tasks)) / tasks)
    except RankLost as lost:
        lost.midway = True
        raise
    if META_STEP in buffers:
        buffers = {**buffers, META_STEP: buffers[META_STEP] + 1}
    masks = {n: t for n, t in meta["buffers"].items() if n.startswith(MASK)}
    meta["buffers"] = {**buffers, **masks}
    held(meta)  # momentum of before, and weight decay, would move what was pruned
    return {**metrics, "grad_norm": norm}
