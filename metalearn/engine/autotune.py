"""`batching=auto`: the fastest plan for a model, its shapes and a device, measured and kept.

The plans that need no compiler are tried first, each on two tasks and, if that is promising, on
the whole meta-batch. What they have shown to pay is then compiled, where the work to come is
longer than a compiler takes for so many operations. A plan whose memory would not fit is passed
over. The answer is kept in the user's cache under everything that it depends on, so that the same
question is not measured twice.
"""

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metalearn.engine.counted import Counted
from metalearn.engine.plan import Plan, parse
from metalearn.engine.question import question
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
SECONDS_AN_OPERATION = 0.03  # of the compiler's: 7.5 ms for a Conv-4, up to 25 ms for a ViT
_PIECES = 3  # inner steps' worth of operations that are compiled: the first, a later one, the last
_NOT_TRIED = "not tried: the work to come is shorter than compiling"


@dataclass(frozen=True)
class Autotuned:
    """What was chosen. seconds: a task, by plan; inf where it did not fit or failed. notes: by
    plan, or by what was not tried, why. worth_after: tasks that have to be ahead for compiling to
    be worth a try; None where it was tried."""

    plan: Plan
    seconds: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    worth_after: float | None = None

    def holds(self, coming: int | None) -> bool:
        """Whether it is an answer for so many tasks, None for any number."""
        return self.worth_after is None or (coming is not None and coming <= self.worth_after)

    def __str__(self) -> str:
        shown = sorted((s, name) for name, s in self.seconds.items() if s < float("inf"))
        others = ", ".join(f"{name} {s * 1e3:.3g}" for s, name in shown[1:])
        best = f"{self.plan}, {shown[0][0] * 1e3:.3g} ms a task" if shown else str(self.plan)
        return f"{best} ({others})" if others else best

    def lines(self) -> list[str]:
        """What was tried, the fastest first, and what was not, each with its reason."""
        tried = [
            f"  {name}: {f'{s * 1e3:.3g} ms a task' if s < float('inf') else 'not usable'}"
            f"{f' ({self.notes[name]})' if name in self.notes else ''}"
            for s, name in sorted((s, name) for name, s in self.seconds.items())
        ]
        rest = [(name, why) for name, why in self.notes.items() if name not in self.seconds]
        return [*tried, *(f"  {name}{': ' if name else ''}{why}" for name, why in rest)]

    def encode(self) -> str:
        saved = {"plan": str(self.plan), "seconds": self.seconds, "notes": self.notes}
        return json.dumps({**saved, "worth_after": self.worth_after}, indent=1)

    @staticmethod
    def decode(text: str) -> "Autotuned":
        """Raises ValueError or KeyError where `text` is not what `encode` wrote."""
        saved = json.loads(text)
        plan, notes = parse(saved["plan"]) or Plan(), saved.get("notes") or {}
        return Autotuned(plan, saved["seconds"], notes, saved.get("worth_after"))


def autotune(
    strategy: Any,
    algo: MetaAlgorithm,
    meta: Meta,
    episodes: Episodes,
    options: tuple[str, ...],
    coming: int | None,
    trial: Trial,
    alone: Callable[[], AbstractContextManager] = nullcontext,
) -> Autotuned:
    """The fastest plan for `episodes`, known or measured now.

    options: precision, capture and, where it is not None, `lite`. coming: tasks that are still to
        be run, None for many.
    """
    asked = question(strategy, algo, meta, episodes, options, is_many(coming))
    if (known := _remembered(asked)) is not None and known.holds(coming):
        return known
    device = episodes.support.device
    # Nothing that is drawn here may show in what follows.
    with torch.random.fork_rng(), torch.no_grad():
        products = algo.steps > 1 and getattr(strategy, "hessian_products", False)
        operations = 0  # where they are not known
        if options[1] == "none":
            with suppress(Exception), Counted() as counted:  # a plan will say what fails
                trial(Plan(), 1)()
                operations = counted.operations
        work = _Work(algo.steps, len(meta["init"]), coming, operations)
        small = sum(t.numel() for t in meta["init"].values()) <= _SMALL
        answer = _measure(trial, episodes.tasks, device, products, small, work, alone)
    log.info("measured %s", answer)
    try:
        write_atomic(_path(asked), answer.encode())
    except OSError as error:
        log.info("the plan could not be kept: %s", error)
    return answer


def is_many(coming: int | None) -> bool:
    """Whether so many tasks are to come that another answer may be right than for a few."""
    return coming is None or coming > 1000


def remembered(
    strategy: Any, algo: MetaAlgorithm, meta: Meta, episodes: Episodes, options: tuple[str, ...]
) -> Autotuned | None:
    """What is known for many tasks; None where nothing was measured."""
    return _remembered(question(strategy, algo, meta, episodes, options, True))


class _Work(NamedTuple):
    """inner steps; tensors of the network's weights; tasks still to be run, None for many;
    operations of one task's meta-gradient, 0 where they are not known."""

    steps: int
    tensors: int
    coming: int | None
    operations: int = 0

    def worth_compiling(self, seconds: float) -> bool:
        """Where a task takes so long uncompiled. A compiler takes longer for more layers."""
        return self.ahead(seconds) > self.compiling

    @property
    def compiling(self) -> float:
        """Seconds of work from which on compiling the pieces is worth it."""
        layers = _WORTH_COMPILING * max(1, self.tensors / _FEW)
        pieces = self.operations * min(1, _PIECES / max(self.steps, 1))
        return max(layers, pieces * SECONDS_AN_OPERATION)

    def worth_whole(self, seconds: float) -> bool:
        """Whether all inner steps may become one compiled piece."""
        if self.ahead(seconds) < self.operations * SECONDS_AN_OPERATION:
            return False
        longest = _LONG if self.ahead(seconds) > _WORTH_LONG else _SHORT
        return self.steps * self.tensors <= longest

    def ahead(self, seconds: float) -> float:
        """Seconds of work to come, where a task takes so many."""
        return math.inf if self.coming is None else self.coming * seconds


def _measure(
    trial: Trial,
    tasks: int,
    device: torch.device,
    forward: bool,
    small: bool,
    work: _Work,
    alone: Callable[[], AbstractContextManager] = nullcontext,
) -> Autotuned:
    """forward: Hessian-vector products are taken. small: so few weights that time goes into
    calls. alone: stands around every plan, and takes away what it leaves."""
    stopwatch = Stopwatch(trial, tasks, device, alone)
    eager = [Plan(), Plan(tasks=0)]
    if tasks > 8:
        eager.append(Plan(tasks=8))
    if forward:
        eager.append(Plan(forward_over_reverse=True))
    for plan in eager:
        stopwatch.time(plan)
    if not any(map(math.isfinite, stopwatch.seconds.values())):
        trial(Plan(), tasks)()  # says why
    best = stopwatch.best()
    if best.tasks is not None:
        stopwatch.time(best._replace(im2col=True))
    seconds, worth_after = stopwatch.seconds[str(best)], None
    stopwatch.limit = work.ahead(seconds) / 2
    if not work.worth_compiling(seconds):
        stopwatch.notes["+compile"] = _NOT_TRIED
        worth_after = work.compiling / max(seconds, 1e-9)
    else:
        forward = stopwatch.pays(Plan(forward_over_reverse=True), Plan())
        cores = torch.get_num_threads() if device.type == "cpu" else 1
        if cores > 1 and tasks >= cores:
            stopwatch.time(Plan(threads=True, compile=True, forward_over_reverse=forward))
        if tasks % cores or cores == 1:  # else tasks side by side leave no core idle
            stopwatch.time(Plan(compile=True, forward_over_reverse=forward))
        if stopwatch.best().tasks is not None or stopwatch.pays(best, Plan()):
            stopwatch.time(stopwatch.best()._replace(compile=True))
        pays = functools.partial(stopwatch.pays, Plan(tasks=0))
        if small or (pays(Plan(), _GAIN) and pays(stopwatch.best(), 1 / _GAIN)):
            whole = work.worth_whole(seconds)
            at_once = Plan(tasks=0, compile=True, forward_over_reverse=forward, whole=whole)
            stopwatch.time(at_once)
            if small and cores > 1:
                stopwatch.time(at_once._replace(serial=True))
    return Autotuned(stopwatch.best(), stopwatch.seconds, stopwatch.notes, worth_after)


def _path(asked: str) -> Path:
    return cache_folder() / "plans" / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"


def _remembered(asked: str) -> Autotuned | None:
    try:
        return Autotuned.decode(_path(asked).read_text())
    except (OSError, ValueError, KeyError):
        return None
