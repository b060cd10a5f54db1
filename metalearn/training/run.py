"""The run shell: any stage in its folder, from the first step or a checkpoint to `result.json`."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from metalearn.engine.ranks import Ranks
from metalearn.errors import Diverged, UsageError
from metalearn.runtime.files import decode_floats
from metalearn.runtime.memory import keep_freed_memory, peak_memory_bytes, reset_peak_memory
from metalearn.runtime.signals import Ending, at_ending, leave
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB
from metalearn.training.checkpoint import (
    prune_checkpoints,
    save_checkpoint,
)
from metalearn.training.folder import (
    check_writable,
    commit,
    held_hash,
    leaving_nothing_of_a_refusal,
    told_of_sources,
)
from metalearn.training.ranks import (
    as_one,
    check_start,
    held_by_first,
    losing,
    other_ranks,
    seconds_since,
    shared_generators,
)
from metalearn.training.stage import CLOCKS, Pace, Position, Stage, resume, teller

Watch = Callable[[int, float], bool]


def run(
    config: Mapping[str, Any],
    build: Callable[[Mapping[str, Any]], tuple[dict[str, Any], Stage]],
    console: Console,
    watch: Watch | None = None,
) -> float | None:
    """One run of a stage in the folder `config["run_dir"]`, which is held for this process alone.

    build: from the configuration to the one with what the starting weights say of themselves, and
    the stage. watch: gets step and score of every validation but the last. Returns the best
    validation score, which a sweep maximises. A run that has finished before is shown. Of several
    ranks each calls this, and the first alone writes and prints.

    Raises UsageError, or DataError, before the folder is made; SystemExit with 128 + its number
    after SIGTERM or SIGHUP, with 0 where `watch` returned True, after a checkpoint, from where the
    same command goes on.
    """
    ranks = Ranks.joined() or Ranks()
    with as_one(ranks):
        told = console if ranks.first else Console(quiet=True)
        return _run(config, build, told, ranks, watch)


def _run(
    config: Mapping[str, Any],
    build: Callable[[Mapping[str, Any]], tuple[dict[str, Any], Stage]],
    console: Console,
    ranks: Ranks,
    watch: Watch | None,
) -> float | None:
    folder, told = Path(config["run_dir"]), []
    if ranks.first:
        check_writable(folder)
    config, stage = build(config)
    threads = torch.get_num_threads()
    if ranks.first:
        told = told_of_sources(folder, config)
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    with held_by_first(ranks, folder, config) as place:
        if place != folder:
            folder, before = place, set()
        say = teller(console)
        for line in told:
            say(line)
        if (result := ranks.told(lambda: finished(folder))) is not None:
            say(f"{folder} has finished before; resume=never trains anew in a fresh folder")
            console.print(stage.table(result))
            _check_finite(result)
            return result["validation_score"]
        # Dropout draws from torch's global generators: seeded for this run, put back after it.
        leaving = leaving_nothing_of_a_refusal(folder, before) if ranks.first else nullcontext()
        with leaving, torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            try:
                return _train(config, stage, folder, console, ranks, watch)
            except OSError as error:
                if error.filename is None:  # as where a disk is full
                    error.filename = str(folder)
                raise
            finally:
                torch.set_num_threads(threads)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that reached its end, or None. Raises UsageError for a damaged one."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict) or "validation_score" not in result:
            raise ValueError("it is no result")
    except ValueError as error:
        raise UsageError(
            f"{path} is damaged ({error}); remove it, and the same command tests the run again"
        ) from None
    return decode_floats(result)


def _train(
    config: Mapping[str, Any],
    stage: Stage,
    folder: Path,
    console: Console,
    ranks: Ranks,
    watch: Watch | None = None,
) -> float | None:
    keep_freed_memory()
    check_start(ranks, stage)
    stage.begin(folder, console)
    pace, stop, say = stage.pace, ranks.ending, teller(console)
    source, digest = ranks.told(lambda: (commit(), held_hash(folder)))
    now = torch.get_num_threads()
    position = Position(threads=now, seed=config["seed"], config_hash=digest)
    reset_peak_memory(stage.device)
    resumed = resume(stage, position, folder, say)
    if resumed:
        if position.ranks != ranks.size:  # of threads that other ranks had, there may be too many
            say(other_ranks(position.ranks, ranks.size))
            position.threads = now
        if position.threads not in (None, now):  # sums of other parts round otherwise
            torch.set_num_threads(position.threads)
            say(
                f"this run began with {position.threads} threads, and goes on with them: with "
                f"{now} it would not end with bitwise the same weights"
            )
        if position.commit != source:
            say(f"this run began at commit {position.commit}, now {source}")
        say(f"resuming {folder} at step {position.step}")
    position.ranks = ranks.size
    sinks = [
        JsonLines(warn=say),
        WandB(**config["tracker"]),
        Progress(console, budget=CLOCKS[pace.clock]),
    ]
    with Tracker(sinks if ranks.first else ()) as tracker:
        info = RunInfo(
            name=folder.name,
            folder=folder,
            config=dict(config),
            commit=source,
            seed=config["seed"],
            steps=pace.steps,
            resume_step=position.step if resumed else None,
            wandb_id=position.wandb_id,
            seconds=pace.seconds and max(pace.seconds - position.seconds, 0.0),
            record_every=pace.record_every,
        )
        position.commit = source
        position.wandb_id = ranks.told(
            lambda: tracker.start(info).get("wandb_id", position.wandb_id)
        )
        if not fit(stage, position, folder, tracker, stop, watch):
            tracker.close("interrupted")
            told = f"stopped at step {position.step} of {pace.steps} after a checkpoint"
            say(f"{told}; the same command goes on from there" if stop else told)
            raise SystemExit(stop.code if stop else 0)
        try:
            with at_ending(leave), losing(ranks, stage, position, folder):
                result = stage.finish(config, position, folder, tracker)
                tracker.summary(result)
        except SystemExit:
            say("stopped during the test; the same command goes on from there")
            raise
    if not ranks.first:
        return position.best_score
    console.print(stage.table(result))
    say(f"run folder: {folder}")
    _check_finite(result)
    return position.best_score


def _check_finite(result: Mapping[str, Any]) -> None:
    """Raise Diverged where the figure of a result is not finite, or that of no episode."""
    lost, episodes = result.get("not_finite_episodes", 0), result.get("episodes")
    measure = result.get("accuracy", result.get("loss"))
    if lost and (lost == episodes or not math.isfinite(float(measure))):
        raise Diverged(
            f"{lost} of {episodes} test episodes are not finite; lower outer.optimizer.lr or "
            "inner.rate (the weights and the result are kept)"
        )


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
    pace, at, ranks = stage.pace, position, stage.ranks or Ranks()
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
                    ended = watch is not None and not last and watch(at.step, score)
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
