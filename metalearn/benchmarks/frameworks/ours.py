"""This library: a strategy of `metalearn.gradients`, by its name."""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch

from metalearn import tree
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import cross_entropy, mean_squared
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.frameworks import Runner
from metalearn.benchmarks.machine import synchronise
from metalearn.benchmarks.models import episodes, module
from metalearn.engine import Engine
from metalearn.engine.cuda_graph import check_capture
from metalearn.engine.strategy import ForeignStrategy, Strategy
from metalearn.errors import UsageError, nearest
from metalearn.functional.precision import slowdown
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Unroll
from metalearn.gradients.peers import Higher, Learn2learn
from metalearn.inner import sgd

# exact: the strategy that `metalearn train` takes where none is asked for.
KINDS: dict[str, Callable[[], Strategy | ForeignStrategy]] = {
    "exact": Adjoint,
    "unroll": Unroll,
    "adjoint": Adjoint,
    "checkpointed": Checkpointed,
    "first_order": FirstOrder,
    "learn2learn": Learn2learn,
    "higher": Higher,
}


def engine_and_strategy(name: str) -> tuple[Engine, Strategy | ForeignStrategy]:
    """ "<kind>:<batching>:<precision>:<capture>" as values; the last three default to auto, fp32
    and none.

    Raises UsageError for a kind or a capture that is not known, and for a fifth part.
    """
    kind, *options = name.split(":")
    if len(options) > 3:
        raise UsageError(f"{name}: use <strategy>:<batching>:<precision>:<capture>")
    batching, precision, capture = (*options, "", "", "")[:3]
    if kind not in KINDS:
        raise UsageError(f"no strategy {kind!r}{nearest(kind, KINDS)}; use {', '.join(KINDS)}")
    made = KINDS[kind]()
    if capture and not hasattr(made, "task"):
        raise UsageError(f"strategy {kind} has no capture; leave out :{capture}")
    check_capture(capture or "none", torch.device("cuda"))
    engine: Any = Engine(
        int(batching) if batching.isdecimal() else batching or "auto",
        precision or "fp32",  # type: ignore[arg-type]
        capture or "none",  # type: ignore[arg-type]
    )
    return engine, made


def ours(
    cell: Cell, engine: Engine, strategy: Strategy | ForeignStrategy, device: str = "cpu"
) -> Callable[[], Any]:
    """One meta-step of `cell` as a function without arguments: with `auto` by the plan for a long
    training, which the first call chooses. Left alone the engine would see few calls, and compile
    nothing."""
    loss = mean_squared if cell.model == "mlp" else cross_entropy
    algo = MAML(module(cell.model), cell.steps, sgd(cell.rate), loss)
    meta = tree.map_meta(lambda t: t.to(device), algo.init())
    tasks = episodes(cell).map(lambda t: t.to(device))

    @functools.cache
    def tuned() -> Engine:
        if engine.batching != "auto" or not hasattr(strategy, "task"):
            return engine
        plan = engine.autotune(cast(Strategy, strategy), algo, meta, tasks).plan
        return engine.with_plan(plan)

    return lambda: tuned()(strategy, algo, meta, tasks)


EMULATED = 5.0
"""Times float32: a precision that takes longer is emulated, and a race would take hours."""


def prepare(cell: Cell, device: str, strategy: str) -> Runner:
    """The meta-step of one strategy. Raises UsageError where its precision is emulated."""
    engine, made = engine_and_strategy(strategy)
    if (times := slowdown(engine.precision, torch.device(device))) > EMULATED:
        raise UsageError(
            f"not timed: a matrix product in {engine.precision} takes {times:.0f} times as long "
            "here as in fp32"
        )
    step = ours(cell, engine, made, device)
    return Runner(step, lambda _: synchronise(device), lambda result: result[0]["init"])
