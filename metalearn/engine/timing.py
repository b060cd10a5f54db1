"""How long a plan takes, and whether its memory fits."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from metalearn.engine.plan import Plan
from metalearn.errors import UsageError
from metalearn.runtime.memory import (
    free_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
    used_memory_bytes,
)

log = logging.getLogger("metalearn.engine")

Trial = Callable[[Plan, int], Callable[[], object]]
"""(plan, tasks) -> what computes one meta-gradient of so many of the tasks at hand."""

_MARGIN = 0.6  # of the free memory
_LONG_ENOUGH = 0.1  # seconds for all readings of a plan
_HOPELESS = 1.5  # times the best so far, on two tasks


class Stopwatch:
    """Times plans, and remembers.

    trial: see `Trial`. tasks: as many as there are at hand. alone: stands around every plan, and
        takes away what it leaves.
    """

    def __init__(
        self,
        trial: Trial,
        tasks: int,
        device: torch.device,
        alone: Callable[[], AbstractContextManager],
    ):
        self.trial, self.tasks, self.device, self.alone = trial, tasks, device, alone
        self.seconds: dict[str, float] = {}
        self.plans: dict[str, Plan] = {}
        self.notes: dict[str, str] = {}
        self.limit = float("inf")  # seconds that all compiling may take
        self.compiling: list[float] = []  # seconds, of each plan that was compiled

    def best(self) -> Plan:
        """The fastest so far."""
        return self.plans[min(self.seconds, key=self.seconds.__getitem__)]

    def pays(self, plan: Plan, against: Plan, times: float = 1.0) -> bool:
        """Whether `plan` was `times` as fast as `against`."""
        never = float("inf")
        one, other = (self.seconds.get(str(p), never) for p in (plan, against))
        return one * times < other

    def time(self, plan: Plan) -> None:
        """Seconds a task of `plan`; inf where it fails or its memory would not fit."""
        if str(plan) in self.seconds:
            return
        if plan.compile and sum(self.compiling) + max(self.compiling, default=0) > self.limit:
            self.notes[str(plan)] = "not tried: those before took too long to compile"
            return
        self.plans[str(plan)] = plan
        started = time.perf_counter()
        try:
            with self.alone():
                self.seconds[str(plan)] = self._time(plan)
            if plan.compile:
                self.compiling.append(time.perf_counter() - started)
        except (RuntimeError, MemoryError, UsageError) as error:
            # Out of memory, or what a transform, the compiler or a peer's engine does not know.
            self.notes[str(plan)] = (
                f"failed: {str(error).splitlines()[0] if str(error) else error!r}"
            )
            log.info("%s %s", plan, self.notes[str(plan)])
            self.seconds[str(plan)] = float("inf")

    def _time(self, plan: Plan) -> float:
        # What is compiled for all tasks at once would be compiled for two as well.
        few = self.tasks if plan.compile and plan.tasks == 0 else min(2, self.tasks)
        before = used_memory_bytes(self.device)
        reset_peak_memory(self.device)
        self._run(plan, few)  # compiles, warms up
        grown = max(0, peak_memory_bytes(self.device) - before)
        quick = self._minimum(plan, few, 2)
        free = free_memory_bytes(self.device)
        at_once = plan.tasks is not None and (plan.tasks or self.tasks)
        if at_once and free is not None and grown / few * at_once > free * _MARGIN:
            self.notes[str(plan)] = f"would need {grown / few * at_once / 2**30:.1f} GiB"
            log.info("%s %s", plan, self.notes[str(plan)])
            return float("inf")
        best = min(self.seconds.values(), default=quick)
        if few == self.tasks:
            return quick
        if quick > _HOPELESS * best:
            self.notes[str(plan)] = "on two tasks; too far behind to go on"
            return quick
        self._run(plan, self.tasks)
        return self._minimum(plan, self.tasks, 3)

    def _minimum(self, plan: Plan, tasks: int, readings: int) -> float:
        """The minimum of so many readings, because what else the machine does only ever adds; each
        of as many runs as last, because threads that miss one another now and then are the plan's
        own."""
        once = self._run(plan, tasks)
        runs = max(1, int(_LONG_ENOUGH / readings / (once * tasks)))
        first = once if runs == 1 else self._run(plan, tasks, runs)
        return min(first, *(self._run(plan, tasks, runs) for _ in range(readings - 1)))

    def _run(self, plan: Plan, tasks: int, runs: int = 1) -> float:
        """Seconds a task, the mean over so many meta-gradients."""
        step = self.trial(plan, tasks)
        started = time.perf_counter()
        for _ in range(runs):
            step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.perf_counter() - started) / tasks / runs
