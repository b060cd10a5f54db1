"""Whether there is memory for the tasks that a plan runs at once, before it is gone."""

import torch

from metalearn.engine.engine import Engine
from metalearn.engine.plan import Plan, parse
from metalearn.engine.strategy import Strategy
from metalearn.errors import UsageError
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.memory import (
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
    used_memory_bytes,
)
from metalearn.types import Episodes, Meta

ROOM_FOR = 2  # tasks, by which the rest is judged


def at_once(engine: Engine) -> bool:
    """Whether its batching names tasks that run at once."""
    given = engine.batching
    plan = given if isinstance(given, Plan) else parse(given)
    return plan is not None and plan.tasks is not None


def check_room(
    engine: Engine, strategy: Strategy, algo: MetaAlgorithm, meta: Meta, episodes: Episodes
) -> None:
    """Raise UsageError where the plan of `engine` would take more memory than is free, for as many
    of the tasks of `episodes` as it runs at once."""
    plan = engine.plan(strategy, algo, meta, episodes)
    together = min(plan.tasks or episodes.tasks, episodes.tasks)
    if plan.tasks is None or together <= ROOM_FOR:
        return
    device = episodes.support.device
    # Uncompiled, which takes as much and is there at once.
    alone = Engine(
        plan._replace(compile=False, whole=False, threads=False), engine.precision, lite=engine.lite
    )
    before = 0
    with torch.random.fork_rng(), torch.no_grad():
        for tasks in (1, ROOM_FOR):  # one first, which loads whatever is loaded once
            few = episodes.map(lambda t, tasks=tasks: t[:tasks])
            before = used_memory_bytes(device)
            reset_peak_memory(device)
            alone(strategy, algo, meta, few)
    needed = max(0, peak_memory_bytes(device) - before) / ROOM_FOR * together
    free = free_memory_bytes(device)
    if free is not None and needed > free:
        raise UsageError(
            f"batching={plan} would need {needed / 2**30:.1f} GiB for {together} tasks at once, "
            f"and {free / 2**30:.1f} are free; use batching=auto, or fewer tasks at a time"
        )
