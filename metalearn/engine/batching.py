"""T tasks from one: after another, side by side in threads, or at once under `vmap`."""

import contextvars
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from metalearn import tree
from metalearn.engine.autotune import settle
from metalearn.engine.cuda_graph import captured, check_capture
from metalearn.engine.execution import Execution, kinds, setting
from metalearn.engine.frozen_body import ThroughFeatures, head_of
from metalearn.engine.plan import Plan, parse
from metalearn.engine.strategy import Strategy, check_algorithm
from metalearn.engine.task import Run, Task, TaskGradient
from metalearn.errors import UsageError
from metalearn.functional.precision import Precision, check_precision, computing_in, outer_scale
from metalearn.functional.torch_private import same_layout
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import Episodes, Meta, MetaGradients, Metrics


def select(tasks: Task, rows: int | slice) -> Task:
    """Task `rows` (without T) or tasks `rows` (with T)."""
    support, query = (batch.map(lambda t: t[rows]) for batch in tasks[:2])
    return Task(support, query, None if tasks.seed is None else tasks.seed[rows])


def map_tasks(
    f: Callable[[Task, Run], Any], tasks: Task, plan: Plan
) -> Iterator[tuple[int | None, Any]]:
    """`f` of every task: pairs (tasks in the part, or None for one task without T; result)."""
    count = tasks.support.x.shape[0]
    run = Execution(plan.tasks is not None, plan.compile, plan.forward, plan.unfold)
    if plan.tasks is not None:
        size = plan.tasks or count
        for start in range(0, count, size):
            part = select(tasks, slice(start, start + size))
            yield min(size, count - start), f(part, run)
        return
    if plan.threads and torch.get_num_threads() > 1:
        for result in _side_by_side(lambda i: f(select(tasks, i), run), count):
            yield None, result
        return
    for i in range(count):
        yield None, f(select(tasks, i), run)


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


def seeds(algo: MetaAlgorithm, count: int, device: torch.device) -> Tensor | None:
    """A seed for the dropout masks of each task, from torch's generator; None without dropout."""
    if not algo.net.exact:
        return None
    return torch.randint(2**62, (count,)).to(device)


def over_tasks(
    strategy: Strategy,
    gradient: TaskGradient,
    algo: MetaAlgorithm,
    meta: Meta,
    episodes: Episodes,
) -> tuple[MetaGradients, Metrics]:
    """The mean over tasks of `gradient`, and its metrics stacked to `[T]`.

    Batched and in the precision that `strategy` says. Raises UsageError where it cannot be, or
    where `algo` is not defined for the strategy.
    """
    x = episodes.support.x
    tensors = _tensors(meta, episodes)
    padded = episodes.support.weight is not None, episodes.query.weight is not None
    asked = strategy, padded, *setting(algo, meta)
    steps = _steps.setdefault(algo, {}).setdefault(asked, [])
    for step in steps:
        if step.serves(*tensors):
            return step(tensors)
    if not (count := x.shape[0]):
        raise UsageError("no episodes in the meta-batch; use training.meta_batch of 1 or more")
    if (plan := parse(strategy.batching)) is None:
        strategy = settle(strategy, algo, meta, episodes)[0]
        plan = parse(strategy.batching) or Plan()
    check_precision(strategy.precision)
    check_capture(strategy.capture, x.device)
    check_algorithm(strategy, algo)
    if strategy.capture == "compile":
        plan = plan._replace(compile=True)
    tasks = Task(episodes.support, episodes.query, seeds(algo, count, x.device))

    if strategy.kind in ("exact", "truncated") and (head := head_of(algo, meta, tasks)):
        gradient = ThroughFeatures(head, gradient)

    def mean_gradient(meta: Meta, tasks: Task) -> tuple[MetaGradients, Metrics]:
        if plan.whole and plan.tasks == 0:
            run, options = Execution(compile=plan.compile), {"gradient": gradient, "plan": plan}
            if plan.compile and strategy.capture == "none" and tasks.seed is None:
                code, tensors = run.compiled(at_once, algo, meta, tasks, **options)
                if serves := same_layout(tensors):
                    ready = all(map(operator.is_, tensors, code.laid_out(tensors)))
                    called = code.ready if ready else code
                    device = x.device
                    step = CompiledStep(serves, called, plan.serial, strategy.precision, device)
                    steps[:] = [step, *steps[:_MOST_STEPS]]
                return code(tensors)
            return run(at_once, algo, meta, tasks, **options)

        def one(task: Task, run: Run) -> tuple[MetaGradients, Metrics]:
            if plan.whole:
                return run(whole, algo, meta, task, gradient=gradient, forward=plan.forward)
            return gradient(algo, meta, task, run)

        return _mean(one, tasks, plan)

    with _Apart(plan.serial), computing_in(strategy.precision, x.device):
        if strategy.capture == "none":
            return mean_gradient(meta, tasks)
        return captured(algo, (asked, kinds(tensors)), mean_gradient, (meta, tasks))


class CompiledStep(NamedTuple):
    """A meta-step of all tasks as one compiled function, of `_tensors(meta, episodes)`. serves:
    whether it was made for tensors like these."""

    serves: Callable[..., bool]
    code: Callable[[Sequence[Tensor]], tuple[MetaGradients, Metrics]]
    serial: bool
    precision: Precision
    device: torch.device

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[MetaGradients, Metrics]:
        with _Apart(self.serial), computing_in(self.precision, self.device):
            return self.code(tensors)


_steps: WeakKeyDictionary[Any, dict[Any, list[CompiledStep]]] = WeakKeyDictionary()
"""By algorithm, and what may differ between calls beside the tensors: to decide how they are run,
and to find what was compiled for it, would take as long as a small network's step."""
_MOST_STEPS = 7  # others that are kept, the last ones first


def _tensors(meta: Meta, episodes: Episodes) -> list[Tensor]:
    """In the order of `tree.leaves`, which would take longer."""
    given = *meta["init"].values(), *meta["hyper"].values(), *meta["buffers"].values()
    return [t for t in (*given, *episodes.support, *episodes.query) if t is not None]


def whole(
    algo: MetaAlgorithm, meta: Meta, task: Task, gradient: TaskGradient, forward: bool
) -> tuple[MetaGradients, Metrics]:
    """The gradient of one task as one piece."""
    return gradient(algo, meta, task, Execution(forward=forward, fused=False))


def at_once(
    algo: MetaAlgorithm, meta: Meta, tasks: Task, gradient: TaskGradient, plan: Plan
) -> tuple[MetaGradients, Metrics]:
    """The mean gradient of all tasks, under `vmap`, as one piece."""

    def one(task: Task, run: Run) -> tuple[MetaGradients, Metrics]:
        return gradient(algo, meta, task, run)

    return _mean(one, tasks, plan._replace(compile=False))


class _Apart:
    """Inside, no gradient is recorded, or a caller's own graph would keep every inner step alive;
    and torch uses one core, where that is asked for.

    Neither a generator nor `torch.no_grad`, which a small network's step would notice.
    """

    def __init__(self, serial: bool):
        self.serial = serial

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled(), torch.get_num_threads()
        torch.set_grad_enabled(False)
        if self.serial:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        recorded, threads = self.before
        torch.set_grad_enabled(recorded)
        if self.serial:
            torch.set_num_threads(threads)


def _mean(
    f: Callable[[Task, Run], tuple[MetaGradients, Metrics]], tasks: Task, plan: Plan
) -> tuple[MetaGradients, Metrics]:
    """The mean of the gradients that `f` gives, without the scale of its loss; metrics `[T]`."""
    total: MetaGradients | None = None
    metrics: list[Metrics] = []
    for count, (part, measured) in map_tasks(f, tasks, plan):
        if count is None:
            measured = tree.map(lambda t: t.unsqueeze(0), measured)
        else:
            part = _both(lambda a: tree.map(lambda t: t.sum(0), a), part)
        total = part if total is None else _both(tree.add, total, part)
        metrics.append(measured)
    assert total is not None
    factor = 1 / (tasks.support.x.shape[0] * outer_scale())
    mean = _both(lambda a: tree.scale(a, factor), total)
    return mean, tree.map(lambda *parts: torch.cat(parts), *metrics)


def _both(f: Callable[..., tree.Params], *gradients: MetaGradients) -> MetaGradients:
    return MetaGradients(
        init=f(*(g["init"] for g in gradients)), hyper=f(*(g["hyper"] for g in gradients))
    )
