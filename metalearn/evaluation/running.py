"""How the tasks of an evaluation run: as the engine says, and in compiled pieces where it is so
long that compiling them pays.

What decides that is counted and never timed, so that the same evaluation takes the same way, and
gives the same digits, whenever it is repeated.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.engine import Engine
from metalearn.engine.autotune import SECONDS_AN_OPERATION
from metalearn.engine.batching import map_tasks
from metalearn.engine.checks import check_run, unmeasured
from metalearn.engine.counted import Counted
from metalearn.engine.frozen_body import QUERY, Body, features_of
from metalearn.engine.plan import Plan, parse
from metalearn.engine.task import Run, Task, tasks_of
from metalearn.evaluation.average_precision import ANSWERS
from metalearn.gradients.steps import next_step
from metalearn.inner.loop import begun, detached_gradient, trajectory
from metalearn.inner.protocol import MetaAlgorithm, OfTasks
from metalearn.types import Episodes, Meta, Metrics, Params

log = logging.getLogger("metalearn.evaluation")

_FEWEST = 300  # inner steps and passes of queries; of fewer nothing is counted
_CALL = 1.5e-5  # seconds of an operation, on a processor's core, whatever it computes
_RATE = 2e10  # floating-point operations a second of such a core
_SAVED = 0.6  # of the time


@dataclass
class Running:
    """The tasks of one evaluation of `algo` with the weights `meta`.

    at: inner steps to measure after, ascending. coming: see `evaluate`.
    """

    algo: MetaAlgorithm
    meta: Meta
    at: tuple[int, ...]
    engine: Engine
    coming: int
    _compiled: bool | None = None  # None until the first task is counted

    def of(self, batch: Episodes) -> list[tuple[int | None, list[Metrics]]]:
        """Pairs (tasks in the part, or None for one task without T; metrics after each of `at`)."""
        algo, meta, given = self.algo, self.meta, self.engine.batching
        at_once = algo if isinstance(algo, OfTasks) and algo.of_tasks else None
        asked = given if isinstance(given, Plan) else parse(given)
        if asked is None:
            plan, _ = unmeasured(None, algo, meta, batch)
            plan = Plan(tasks=0) if at_once else plan
        else:
            plan = asked._replace(threads=False, compile=False)
            if plan.tasks is not None:
                check_run(None, algo, meta, batch, True)
        tasks = tasks_of(algo, batch)
        body = None if at_once else self.engine.body(algo, meta, tasks)

        def one(task: Task, run: Run) -> list[Metrics]:
            if at_once and plan.tasks is not None:
                return [at_once.measured(meta, task.given, task.query)]
            return run(_measured, algo, meta, task, at=self.at, body=body)

        # Tasks of unequal size have other shapes in every batch.
        alike = all(part.weight is None for part in batch.parts)
        on_cpu = batch.support.device.type == "cpu"
        if plan.tasks is None and alike and on_cpu and (asked is None or asked.compile):
            if self._compiled is None:
                first = tasks.at(0)
                self._compiled = _worth_compiling(algo, meta, first, self.at, body, self.coming)
            if self._compiled:
                try:
                    return self._in_pieces(tasks, body)
                except Exception as error:  # of the compiler; an algorithm's own come again below
                    log.info("not compiled: %s", error)
                    self._compiled = False
        return list(map_tasks(one, tasks, plan))

    def _in_pieces(self, tasks: Task, body: Body | None) -> list[tuple[int | None, list[Metrics]]]:
        """Side by side on the cores; one after another where there is one."""

        def one(task: Task, run: Run) -> list[Metrics]:
            return _in_pieces(self.algo, self.meta, task, run, self.at, body)

        plan = Plan(threads=torch.get_num_threads() > 1, compile=True)
        return list(self.engine.each(one, self.algo, tasks, plan))


def _measured(
    algo: MetaAlgorithm, meta: Meta, task: Task, at: Sequence[int], body: Body | None = None
) -> list[Metrics]:
    """One task: the query metrics after each of `at` inner steps, ascending.

    body: of `algo`, where the head alone adapts; the inputs pass through the rest once.
    """
    if body is not None:
        algo, meta = body, body.meta(meta, features_of(algo, meta, body.path, task))
    path = trajectory(algo, meta, task.given, max(at), gradient=detached_gradient)
    return [
        _query_metrics(algo, meta, fast, task, step)
        for step, (fast, _) in enumerate(path)
        if step in at
    ]


def _in_pieces(
    algo: MetaAlgorithm, meta: Meta, task: Task, run: Run, at: Sequence[int], body: Body | None
) -> list[Metrics]:
    """The same by `run`, for a plan that compiles: every inner step is one piece, and may be that
    of the training; so is every pass of the queries."""
    if body is not None:
        found = run(features_of, algo, meta, body.path, task)
        algo, meta = body, body.meta(meta, found)
    numbers, metrics = run.numbers(max(at), task), []
    fast = begun(algo, meta, task.given)
    state = algo.rule.init(fast)
    for step in range(max(at) + 1):
        if step:
            given = fast, state, task, numbers[step - 1]
            fast, state = run(next_step, algo, meta, *given, gradient=detached_gradient)
        if step in at:
            metrics.append(run(_query_metrics, algo, meta, fast, task, numbers[step]))
    return metrics


def _query_metrics(
    algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task, step: int | Tensor
) -> Metrics:
    """Those of the loss, and the answers that can only be judged outside of a transform."""
    fast = algo.finish(meta, fast, task.given, step)
    metrics = algo.outer_loss(meta, fast, task.query)[1]
    on_features = isinstance(algo, Body)
    answers = getattr(getattr(algo.algo if on_features else algo, "loss", None), "answers", None)
    if answers is None:
        return metrics
    x = meta["init"][QUERY] if on_features else task.query.x
    given = answers(algo.predict(meta, fast, x))
    return {**metrics, **{f"{ANSWERS}{name}": t for name, t in given.items()}}


def _worth_compiling(
    algo: MetaAlgorithm, meta: Meta, task: Task, at: Sequence[int], body: Body | None, coming: int
) -> bool:
    """Whether compiling takes less than it saves, over `coming` tasks like `task`.

    Nothing that draws at random is compiled, whose draws would be others.
    """
    if coming * (max(at) + len(at)) < _FEWEST:
        return False
    with torch.random.fork_rng(), Counted() as query:
        _measured(algo, meta, task, (0,), body)
    step = Counted()
    if last := max(at):
        with torch.random.fork_rng(), step:
            _measured(algo, meta, task, (1,), body)
        step.operations, step.flops = (
            max(0, getattr(step, name) - getattr(query, name)) for name in ("operations", "flops")
        )
    seconds = [count.operations * _CALL + count.flops / _RATE for count in (query, step)]
    saved = _SAVED * coming * (len(at) * seconds[0] + last * seconds[1])
    compiling = (query.operations + step.operations) * SECONDS_AN_OPERATION
    worth = saved > compiling and not (query.random or step.random)
    log.info("compiling would take %.3g s and save %.3g s: %s", compiling, saved, worth)
    return worth
