"""A worker: it takes one run of a study after the other, in one process, until none is left."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console

from metalearn.errors import Busy, UsageError, disk_full, one_line
from metalearn.runtime.signals import Ending, at_ending, leave
from metalearn.sweeps.claims import DONE, FAILED, STOPPED, Attempt, Claims, hopeless
from metalearn.sweeps.heartbeat import SILENT, Watch, Worker
from metalearn.training.stage import teller

_POLL, _LONGEST_POLL = 0.5, 5.0
_BUSY, _LONGEST_BUSY = 10.0, 600.0
"""Seconds before a run that another process holds is tried again, the second time twice as many."""
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_OF_TORCHRUN += ("MASTER_ADDR", "MASTER_PORT", "ROLE_RANK", "ROLE_WORLD_SIZE")


class End(NamedTuple):
    """How an attempt at a run ended: one of `claims`' words, and what is kept of it."""

    how: str
    record: dict[str, Any]


class Jobs(Protocol):
    """What there is to do in a study: the runs of a plan, or the trials of a search."""

    def every(self) -> Sequence[str]:
        """Of everything that is to be done, in its order; more may come."""
        ...

    def name(self, key: str) -> str:
        """For people."""
        ...

    def folder(self, key: str) -> Path | None:
        """Of its run, where it has one yet."""
        ...

    def run(self, key: str, console: Console) -> dict[str, Any]:
        """Do it, or go on with it; returns what is to be kept. Raises what a run raises."""
        ...

    def given_up(self, key: str, why: str) -> None:
        """It is not tried any more."""
        ...

    def retried(self, key: str) -> None:
        """It had been given up, and is to be done after all."""
        ...

    def again(self, error: BaseException, failures: int) -> bool:
        """Whether a run that has failed so often, last with `error`, is tried once more."""
        ...


def work(
    study: Path,
    jobs: Jobs,
    console: Console,
    minutes: float | None = None,
    most: int | None = None,
    wait: bool = True,
    silent: float = SILENT,
) -> int:
    """Take runs until none is left, `most` are done or `minutes` are over; how many failed.

    What a dead worker left is gone on with. wait: stay while other workers have runs, which may
    come to be left. silent: of `Watch`. A run that fails is written down, and the next one taken.

    Raises SystemExit with 128 + its number after SIGTERM or SIGHUP, once the run at work has left a
    checkpoint; UsageError where the device is lost; OSError where the disk is full.
    """
    one_of_many()
    claims, watch, ending, say = Claims(study), Watch(study, silent), Ending(), teller(console)
    current: list[tuple[str, int]] = []
    seconds = None if minutes is None else 60 * minutes
    count = failed = 0
    with (
        at_ending(ending),
        Worker(study, seconds, lambda: any(claims.taken_over(*c) for c in current)) as worker,
    ):
        later: dict[str, float] = {}
        busy: dict[str, float] = {}
        pause = _POLL
        while not ending and (most is None or count < most):
            found = _next(jobs, claims, watch, worker.name, later)
            if found is None:
                if not wait or not _open(jobs, claims):
                    break
                threading.Event().wait(pause)
                pause = min(1.5 * pause, _LONGEST_POLL)
                continue
            (key, attempt, why), pause = found, _POLL
            current[:] = [(key, attempt.number)]
            say(f"run {key} {jobs.name(key)}".rstrip())
            try:
                if why:
                    jobs.given_up(key, why)
                    end = End(FAILED, {"error": why})
                else:
                    end = _perform(jobs, key, claims, ending, console)
            except (KeyboardInterrupt, OSError):
                with suppress(OSError):
                    claims.end(key, attempt.number, STOPPED, {"worker": worker.name})
                raise
            current.clear()
            if "busy" in end.record:
                busy[key] = min(2 * busy.get(key, _BUSY / 2), _LONGEST_BUSY)
                later[key] = time.monotonic() + busy[key]
            if not claims.taken_over(key, attempt.number):
                claims.end(key, attempt.number, end.how, {**end.record, "worker": worker.name})
                count += end.how != STOPPED
            if error := end.record.get("error"):
                failed += end.how == FAILED
                more = "" if end.how == FAILED else "; it is tried once more"
                print(f"metalearn: run {key} failed: {error}{more}", file=sys.stderr)
                _check_device()
    say(f"{count} runs ended here" + (f", {failed} of them failed" if failed else ""))
    if worker.asked:
        say(f"worker {worker.name} ends: {worker.asked}")
    elif ending:
        raise SystemExit(ending.code)
    return failed


def one_of_many() -> None:
    """Under torchrun each process is a worker of its own, whose runs are not told of ranks; nor
    does a name for one run in W&B go to all of them."""
    rank = os.environ.get("LOCAL_RANK")
    for name in (*_OF_TORCHRUN, "WANDB_RUN_ID"):
        os.environ.pop(name, None)
    if rank is not None and torch.cuda.is_available():
        torch.cuda.set_device(int(rank) % torch.cuda.device_count())


def step_of(folder: Path | None) -> int:
    """Of the newest checkpoint of a run; 0 where it has none."""
    names = [path.name for path in folder.glob("checkpoints/step-*")] if folder else []
    return max((int(n.removeprefix("step-")) for n in names if n[5:].isdigit()), default=0)


def _next(
    jobs: Jobs, claims: Claims, watch: Watch, worker: str, later: dict[str, float]
) -> tuple[str, Attempt, str] | None:
    """The first run that waits or was left by a dead worker, claimed for this one; and why it is
    to be given up, where it has killed its workers."""
    attempts = claims.read()
    for key in jobs.every():
        own = attempts.get(key, [])
        state = own[-1].state if own else "waiting"
        dead = state == "claimed" and not watch.lives(own[-1].worker)
        if (state != "waiting" and not dead) or later.get(key, 0.0) > time.monotonic():
            continue
        number, step = len(own) and own[-1].number, step_of(jobs.folder(key)) if own else 0
        if not claims.claim(key, number + 1, worker, step):
            continue
        why = ""
        if dead and hopeless(own):
            why = f"its worker died {len(own[-3:])} times at step {step}, as where memory is short"
        return key, Attempt(number + 1, worker, step), why
    return None


def _open(jobs: Jobs, claims: Claims) -> bool:
    """Whether anything has not ended yet."""
    attempts = claims.read()
    states = (attempts[k][-1].state if k in attempts else "waiting" for k in jobs.every())
    return any(state in ("waiting", "claimed") for state in states)


def _perform(jobs: Jobs, key: str, claims: Claims, ending: Ending, console: Console) -> End:
    """One run, whatever becomes of it."""
    started = time.monotonic()

    def end(number: int) -> None:
        ending(number)
        leave(number)

    try:
        if ending:  # it came while the run was claimed
            return End(STOPPED, {})
        with at_ending(end):
            kept = jobs.run(key, console)
        return End(kept.pop("how", DONE), {**kept, "seconds": time.monotonic() - started})
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:
            ending(stop.code - 128)
            return End(STOPPED, {})
        error: BaseException = stop
    except Busy as busy:
        return End(STOPPED, {"busy": str(busy)})
    except Exception as caught:
        if disk_full(caught):  # every other run would fail as well
            raise
        error = caught
    return _failure(jobs, key, claims, error, time.monotonic() - started)


def _failure(jobs: Jobs, key: str, claims: Claims, error: BaseException, seconds: float) -> End:
    """What is kept of a run that raised `error`, and whether it is tried once more."""
    line = one_line(error)
    record: dict[str, Any] = {"seconds": seconds}
    if line is None:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        record["traceback"] = "".join(traceback.format_exception(error))
    before = [claims.record(key, attempt) for attempt in claims.read().get(key, [])]
    if jobs.again(error, 1 + sum("error" in told for told in before)):
        return End(STOPPED, {**record, "error": line})
    jobs.given_up(key, line)
    return End(FAILED, {**record, "error": line})


def _check_device() -> None:
    """Raise UsageError where a failure has left the GPU unusable for this process."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise UsageError(
            f"the GPU is lost to this worker ({' '.join(str(error).split())[:120]}); start another"
        ) from None
