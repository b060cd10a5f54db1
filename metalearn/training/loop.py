"""The loop of a run: steps, validations, checkpoints, until one of the ends that there are."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.errors import UsageError
from metalearn.runtime.memory import peak_memory_bytes
from metalearn.runtime.signals import Ending, at_ending
from metalearn.tracking import Tracker
from metalearn.training.checkpoint import prune_checkpoints, save_checkpoint
from metalearn.training.ranks import losing, seconds_since, shared_generators
from metalearn.training.stage import CLOCKS, Pace, Position, Stage, ranks_of

Watch = Callable[[int, float], bool]
"""Number, from 1, and score of every validation but the last -> whether the run ends there."""


def fit(
    stage: Stage,
    position: Position,
    folder: Path,
    tracker: Tracker,
    stop: Ending | None = None,
    watch: Watch | None = None,
) -> bool:
    """Train until the steps or the seconds are over, an early stop, SIGTERM or SIGHUP.

    `stage` and `position` are updated in place; checkpoints go to `folder/checkpoints`. Returns
    False where a signal came, to any rank, which `stop` then knows, or `watch` of `run` ended it.
    Raises UsageError where `folder` has gone, and RankLost, after a checkpoint, where a rank has.
    """
    pace, at, ranks = stage.pace, position, ranks_of(stage)
    ranks.ending = stop = ranks.ending if stop is None else stop
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
    place = _place(folder)
    start = CLOCKS[pace.clock]() - at.seconds
    workers = int(stage.device.type == "cuda") if pace.workers is None else pace.workers
    coming = stage.batches(range(at.step, pace.steps), workers)
    with at_ending(stop), closing(coming):
        since = at.step, time.perf_counter()
        while not _over(at, pace):
            generators = shared_generators(ranks) if ranks.size > 1 else None
            with losing(ranks, stage, at, folder, generators):
                values = stage.step(at.step + 1, next(coming), tracker)
            at.step += 1
            # Once a step: what `last` says, and what a checkpoint of this step keeps, agree.
            at.seconds = seconds_since(start, pace, ranks)
            last = at.step == pace.steps or _out_of_time(at, pace)
            validates = last or at.step % pace.validate_every == 0
            records = validates or at.step % pace.record_every == 0
            ended = False
            if records:
                record = _checked(stage, values, at.step)
                rate = (at.step - since[0]) * stage.size / (time.perf_counter() - since[1])
                record[f"{stage.unit}_per_second"] = rate
                record["peak_memory_bytes"] = peak_memory_bytes(stage.device)
                if validates:
                    with losing(ranks, stage, at, folder):
                        score, more = _validate(stage, at, tracker)
                    record |= more
                    number = at.step // pace.validate_every
                    ended = watch is not None and not last and watch(number, score)
                    at.seconds = seconds_since(start, pace, ranks)
                tracker.scalars(at.step, record)
            signal = ranks.stopping()
            stopping = bool(signal) or ended
            if validates or stopping or at.step % pace.checkpoint_every == 0:
                _checked(stage, values, at.step)
            if ranks.first and (validates or stopping or at.step % pace.checkpoint_every == 0):
                if _place(folder) != place:
                    raise UsageError(
                        f"{folder} was moved or removed while it trained; put it back, and the "
                        "same command goes on from its last checkpoint"
                    )
                state = {**at.dump(), **stage.dump(), "generators": shared_generators(ranks)}
                save_checkpoint(folder / "checkpoints", at.step, state)
                prune_checkpoints(folder / "checkpoints", pace.keep, also=at.best_step)
            if stopping:
                stop(signal)
                return False
            if records:
                since = at.step, time.perf_counter()
        at.seconds = seconds_since(start, pace, ranks)
        if stopping := ranks.agreed():
            stop(stopping)
        return not stopping  # the last step has left a checkpoint


def _place(folder: Path) -> tuple[int, int] | None:
    """The folder itself, whatever its name; None where there is none."""
    with suppress(OSError):
        found = os.stat(folder)
        return found.st_dev, found.st_ino


def _checked(stage: Stage, values: Mapping[str, Tensor | float], step: int) -> dict[str, Any]:
    numbers = {name: float(value) for name, value in values.items()}
    stage.check(numbers, step)
    return numbers


def _validate(stage: Stage, at: Position, tracker: Tracker) -> tuple[float, Mapping[str, float]]:
    score, record, newest = stage.validate(at.step, tracker)
    best = at.best_score
    if newest or best is None or best != best or score > best:  # a NaN is no score
        at.best_score, at.best_step = score, at.step
        stage.select()
    return score, record


def _over(at: Position, pace: Pace) -> bool:
    if at.step >= pace.steps or _out_of_time(at, pace):
        return True
    waited = at.step - at.best_step
    return pace.patience is not None and waited >= pace.patience * pace.validate_every


def _out_of_time(at: Position, pace: Pace) -> bool:
    """Whether the seconds are used up; a first step is always taken."""
    return pace.seconds is not None and at.step > 0 and at.seconds >= pace.seconds
