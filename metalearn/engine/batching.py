"""T tasks from one: after another, side by side in threads, or at once under `vmap`."""

import contextvars
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from metalearn import tree
from metalearn.engine.compiler import Cache
from metalearn.engine.execution import Execution
from metalearn.engine.plan import Plan
from metalearn.engine.task import Run, Task, TaskGradient
from metalearn.functional.precision import outer_scale
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Meta, MetaGradients, Metrics


def map_tasks(
    f: Callable[[Task, Run], Any],
    tasks: Task,
    plan: Plan,
    cache: Cache | None = None,
    fused: bool = True,
) -> Iterator[tuple[int | None, Any]]:
    """`f` of every task: pairs (tasks in the part, or None for one task without T; result).

    cache: of what is compiled, for a plan that compiles. fused: whether the values between the
    pieces can be seen, which they cannot inside of what is compiled as a whole.
    """
    count = tasks.query.shape[0]
    how = plan.tasks is not None, plan.compile, plan.forward_over_reverse, plan.im2col
    run = Execution(*how, fused, cache)
    if plan.tasks is not None:
        size = plan.tasks or count
        for start in range(0, count, size):
            part = tasks if size >= count else tasks.at(slice(start, start + size))
            yield min(size, count - start), f(part, run)
        return
    if plan.threads and torch.get_num_threads() > 1:
        for result in _side_by_side(lambda i: f(tasks.at(i), run), count):
            yield None, result
        return
    for i in range(count):
        yield None, f(tasks.at(i), run)


def _side_by_side(f: Callable[[int], Any], count: int) -> list[Any]:
    """`f` of 0 ... count - 1 in as many threads as torch has, each with one core of its own."""
    threads = torch.get_num_threads()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def task(i: int) -> Any:
        if device is not None:
            torch.cuda.set_device(device)
        torch.set_num_threads(1)
        with torch.no_grad():
            return f(i)

    try:
        # The first compiles what the others use; contexts, such as the precision, go along.
        futures = [
            _workers(threads).submit(contextvars.copy_context().run, task, i) for i in range(count)
        ]
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)  # a worker's call is seen by threads that start later


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="metalearn-task")


def default_plan(device: torch.device) -> Plan:
    """What "auto" stands for where nothing is measured: `vmap` pays on a GPU, not on a CPU."""
    return Plan() if device.type == "cpu" else Plan(tasks=0)


def whole(
    algo: MetaAlgorithm, meta: Meta, task: Task, gradient: TaskGradient, forward: bool
) -> GradientAndMetrics:
    """The gradient of one task as one piece."""
    run = Execution(forward_over_reverse=forward, fused=False)
    return gradient(algo, meta, task, run)


def at_once(
    algo: MetaAlgorithm, meta: Meta, tasks: Task, gradient: TaskGradient, plan: Plan
) -> GradientAndMetrics:
    """The mean gradient of all tasks, under `vmap`, as one piece."""
    inside = plan._replace(compile=False, whole=False)
    return mean_gradient(gradient, algo, meta, tasks, inside, fused=not plan.compile)


def mean_gradient(
    gradient: TaskGradient,
    algo: MetaAlgorithm,
    meta: Meta,
    tasks: Task,
    plan: Plan,
    cache: Cache | None = None,
    fused: bool = True,
) -> GradientAndMetrics:
    """The mean over tasks of `gradient`, without the scale of its loss; metrics `[T]`.

    cache, fused: as in `map_tasks`.
    """

    def one(task: Task, run: Run) -> GradientAndMetrics:
        if plan.whole:
            forward = plan.forward_over_reverse
            return run(whole, algo, meta, task, gradient=gradient, forward=forward)
        return gradient(algo, meta, task, run)

    total: MetaGradients | None = None
    metrics: list[Metrics] = []
    for count, (part, measured) in map_tasks(one, tasks, plan, cache, fused):
        if count is None:
            measured = tree.map(lambda t: t.unsqueeze(0), measured)
        else:
            part = _both(lambda a: tree.map(lambda t: t.sum(0), a), part)
        total = part if total is None else _both(tree.add, total, part)
        metrics.append(measured)
    assert total is not None
    factor = 1 / (tasks.query.shape[0] * outer_scale())
    mean = _both(lambda a: tree.scale(a, factor), total)
    return mean, tree.map(lambda *parts: torch.cat(parts), *metrics)


def _both(f: Callable[..., tree.Params], *gradients: MetaGradients) -> MetaGradients:
    return MetaGradients(
        init=f(*(g["init"] for g in gradients)), hyper=f(*(g["hyper"] for g in gradients))
    )
