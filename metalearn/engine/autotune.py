"""`batching=auto`: the fastest plan for a model, its shapes and a device, measured and kept.

The plans that need no compiler are tried first, each on two tasks and, if that is promising, on
the whole meta-batch. What they have shown to pay is then compiled, where the work to come is
worth the wait. A plan whose memory would not fit is passed over. The choice is kept in this
process and in the user's cache, so that the same question is not measured twice.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from metalearn.engine.cuda_graph import passing
from metalearn.engine.plan import Plan, parse
from metalearn.engine.timing import Stopwatch, Trial
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.files import cache_folder, write_atomic
from metalearn.types import Episodes, Meta

log = logging.getLogger("metalearn.engine")

_GAIN = 1.5  # times: what `vmap` has to win over a loop, and may win by being compiled
_SHORT, _LONG = 60, 300  # inner steps times weight tensors that one compiled piece may hold
_SMALL = 20_000  # weights; an eager `vmap` may look slow where its threads miss one another
_WORTH_COMPILING = 120.0  # seconds of work to come, uncompiled, for a network of
_FEW = 20  # weight tensors; a Conv-4 has 18
_WORTH_LONG = 1200.0  # the same, where the compiler takes minutes


@dataclass(frozen=True)
class Choice:
    """What was chosen. seconds: a task, by plan; inf where it did not fit or failed."""

    plan: Plan
    seconds: dict[str, float]

    def __str__(self) -> str:
        shown = sorted((s, name) for name, s in self.seconds.items() if s < float("inf"))
        others = ", ".join(f"{name} {s * 1e3:.3g}" for s, name in shown[1:])
        best = f"{self.plan}, {shown[0][0] * 1e3:.3g} ms a task" if shown else str(self.plan)
        return f"{best} ({others})" if others else best

    def encode(self) -> str:
        return json.dumps({"plan": str(self.plan), "seconds": self.seconds}, indent=1)

    @staticmethod
    def decode(text: str) -> "Choice":
        saved = json.loads(text)
        return Choice(parse(saved["plan"]) or Plan(), saved["seconds"])


_choices: dict[str, Choice] = {}
_settled: WeakKeyDictionary[Any, dict[Any, tuple[Any, Choice]]] = WeakKeyDictionary()
"""Answers by algorithm, for the calls of a loop: to ask `_choices` costs more than a step."""


def settle(
    strategy: Any,
    algo: MetaAlgorithm,
    meta: Meta,
    episodes: Episodes,
    coming: int | None = None,
) -> tuple[Any, Choice]:
    """`strategy` with the batching that is fastest for `episodes`, known or measured now.

    strategy: a dataclass with a field `batching`. coming: tasks that are still to be run, None
    for many; a few are not worth compiling for.
    """
    (x, y, weight), query = episodes
    # Tasks of unequal size: every batch has other shapes.
    shapes = (x.shape, y.shape, query.x.shape, query.y.shape) if weight is None else ()
    many = coming is None or coming > 1000
    asked = (strategy, algo.steps, shapes, x.dtype, x.device, torch.get_num_threads(), many)
    settled = _settled.setdefault(algo, {})
    if (known := settled.get(asked)) is None:
        known = settled[asked] = _settle(strategy, algo, meta, episodes, coming)
    return known


def _settle(
    strategy: Any, algo: MetaAlgorithm, meta: Meta, episodes: Episodes, coming: int | None
) -> tuple[Any, Choice]:
    x = episodes.support.x
    if episodes.support.weight is not None:
        # What is measured or compiled for these shapes may never be used again.
        choice = Choice(Plan() if x.device.type == "cpu" else Plan(tasks=0), {})
        return dataclasses.replace(strategy, batching=str(choice.plan)), choice
    question = f"{_question(strategy, algo, meta, episodes)}\n{coming is None or coming > 1000}"
    choice = _remembered(question)
    if choice is None:

        def trial(plan: Plan, tasks: int) -> Callable[[], object]:
            planned = dataclasses.replace(strategy, batching=str(plan))
            return functools.partial(planned, algo, meta, episodes.map(lambda t: t[:tasks]))

        # Nothing that is drawn here may show in what follows.
        with torch.random.fork_rng(), torch.no_grad():
            products = algo.steps > 1 and getattr(strategy, "hessian_products", False)
            work = _Work(algo.steps, len(meta["init"]), coming)
            small = sum(t.numel() for t in meta["init"].values()) <= _SMALL
            alone = functools.partial(passing, algo)
            choice = _measure(trial, len(x), x.device, products, small, work, alone)
        _keep(question, choice)
    return dataclasses.replace(strategy, batching=str(choice.plan)), choice


def _question(strategy: Any, algo: MetaAlgorithm, meta: Meta, episodes: Episodes) -> str:
    """Everything that the answer depends on."""
    x = episodes.support.x
    name = torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else "cpu"
    shapes = [tuple(t.shape) for batch in episodes for t in batch if t is not None]
    weights = [(n, tuple(t.shape)) for part in ("init", "hyper") for n, t in meta[part].items()]
    return "\n".join(
        str(part)
        for part in (
            dataclasses.replace(strategy, batching="auto"),
            type(algo).__name__,
            algo.steps,
            algo.net.module,
            weights,
            shapes,
            x.dtype,
            name,
            torch.get_num_threads(),
            torch.__version__,
        )
    )


class _Work(NamedTuple):
    """inner steps; tensors of the network's weights; tasks still to be run, None for many."""

    steps: int
    tensors: int
    coming: int | None

    def worth_compiling(self, seconds: float) -> bool:
        """Where a task takes so long uncompiled. A compiler takes longer for more layers."""
        return self._ahead(seconds) > _WORTH_COMPILING * max(1, self.tensors / _FEW)

    def worth_whole(self, seconds: float) -> bool:
        """Whether all inner steps may become one compiled piece."""
        longest = _LONG if self._ahead(seconds) > _WORTH_LONG else _SHORT
        return self.steps * self.tensors <= longest

    def _ahead(self, seconds: float) -> float:
        return math.inf if self.coming is None else self.coming * seconds


def _measure(
    trial: Trial,
    tasks: int,
    device: torch.device,
    forward: bool,
    small: bool,
    work: _Work,
    alone: Callable[[], AbstractContextManager] = nullcontext,
) -> Choice:
    """forward: Hessian-vector products are taken. small: so few weights that time goes into
    calls. alone: stands around every plan, and takes away what it leaves."""
    stopwatch = Stopwatch(trial, tasks, device, alone)
    eager = [Plan(), Plan(tasks=0)]
    if tasks > 8:
        eager.append(Plan(tasks=8))
    if forward:
        eager.append(Plan(forward=True))
    for plan in eager:
        stopwatch.time(plan)
    if not any(map(math.isfinite, stopwatch.seconds.values())):
        trial(Plan(), tasks)()  # says why
    best = stopwatch.best()
    if best.tasks is not None:
        stopwatch.time(best._replace(unfold=True))
    seconds = stopwatch.seconds[str(best)]
    if work.worth_compiling(seconds):
        forward = stopwatch.pays(Plan(forward=True), Plan())
        cores = torch.get_num_threads() if device.type == "cpu" else 1
        if cores > 1 and tasks >= cores:
            stopwatch.time(Plan(threads=True, compile=True, forward=forward))
        if tasks % cores or cores == 1:  # else tasks side by side leave no core idle
            stopwatch.time(Plan(compile=True, forward=forward))
        if stopwatch.best().tasks is not None or stopwatch.pays(best, Plan()):
            stopwatch.time(stopwatch.best()._replace(compile=True))
        pays = functools.partial(stopwatch.pays, Plan(tasks=0))
        if small or (pays(Plan(), _GAIN) and pays(stopwatch.best(), 1 / _GAIN)):
            whole = work.worth_whole(seconds)
            at_once = Plan(tasks=0, compile=True, forward=forward, whole=whole)
            stopwatch.time(at_once)
            if small and cores > 1:
                stopwatch.time(at_once._replace(serial=True))
    return Choice(stopwatch.best(), stopwatch.seconds)


def _path(question: str) -> Path:
    return cache_folder() / "plans" / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"


def _remembered(question: str) -> Choice | None:
    if question not in _choices:
        try:
            _choices[question] = Choice.decode(_path(question).read_text())
        except (OSError, ValueError, KeyError):
            return None
    return _choices[question]


def _keep(question: str, choice: Choice) -> None:
    log.info("measured %s", choice)
    _choices[question] = choice
    try:
        write_atomic(_path(question), choice.encode())
    except OSError as error:
        log.info("the choice could not be kept: %s", error)
