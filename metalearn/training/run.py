"""The run shell: any stage in its folder, from the first step or a checkpoint to `result.json`."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from metalearn.errors import Diverged, UsageError
from metalearn.runtime.files import decode_floats
from metalearn.runtime.memory import keep_freed_memory, peak_memory_bytes, reset_peak_memory
from metalearn.runtime.signals import Ending, at_ending, leave
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB
from metalearn.training.checkpoint import (
    generator_states,
    latest_checkpoint,
    prune_checkpoints,
    restore_generators,
    save_checkpoint,
)
from metalearn.training.folder import (
    check_writable,
    commit,
    held,
    held_hash,
    leaving_nothing_of_a_refusal,
    told_of_sources,
)
from metalearn.training.stage import CLOCKS, Pace, Position, Stage, teller

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
    validation score, which a sweep maximises. A run that has finished before is shown.

    Raises UsageError, or DataError, before the folder is made; SystemExit with 128 + its number
    after SIGTERM or SIGHUP, with 0 where `watch` returned True, after a checkpoint, from where the
    same command goes on.
    """
    folder = Path(config["run_dir"])
    check_writable(folder)
    config, stage = build(config)
    threads = torch.get_num_threads()
    told = told_of_sources(folder, config)
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    with held(folder, config, config["resume"]) as place:
        if place != folder:
            folder, before = place, set()
        say = teller(console)
        for line in told:
            say(line)
        if (result := finished(folder)) is not None:
            say(f"{folder} has finished before; resume=never trains anew in a fresh folder")
            console.print(stage.table(result))
            _check_finite(result)
            return result["validation_score"]
        # Dropout draws from torch's global generators: seeded for this run, put back after it.
        with leaving_nothing_of_a_refusal(folder, before), torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            try:
                return _train(config, stage, folder, console, watch)
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
    watch: Watch | None = None,
) -> float | None:
    keep_freed_memory()
    stage.begin(folder, console)
    pace, source, stop, say = stage.pace, commit(), Ending(), teller(console)
    now, digest = torch.get_num_threads(), held_hash(folder)
    position = Position(threads=now, seed=config["seed"], config_hash=digest)
    reset_peak_memory(stage.device)
    resumed = resume(stage, position, folder, say)
    if resumed:
        if position.threads not in (None, now):  # sums of other parts round otherwise
            torch.set_num_threads(position.threads)
            say(
                f"this run began with {position.threads} threads, and goes on with them: with "
                f"{now} it would not end with bitwise the same weights"
            )
        if position.commit != source:
            say(f"this run began at commit {position.commit}, now {source}")
        say(f"resuming {folder} at step {position.step}")
    sinks = [JsonLines(warn=say), WandB(**config["tracker"]), Progress(console)]
    with Tracker(sinks) as tracker:
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
        position.wandb_id = tracker.start(info).get("wandb_id", position.wandb_id)
        if not fit(stage, position, folder, tracker, stop, watch):
            tracker.close("interrupted")
            told = f"stopped at step {position.step} of {pace.steps} after a checkpoint"
            say(f"{told}; the same command goes on from there" if stop else told)
            raise SystemExit(stop.code if stop else 0)
        try:
            with at_ending(leave):
                result = stage.finish(config, position, folder, tracker)
                tracker.summary(result)
        except SystemExit:
            say("stopped during the test; the same command goes on from there")
            raise
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


def resume(stage: Stage, position: Position, folder: Path, warn: Callable[[str], None]) -> bool:
    """Load the newest readable checkpoint under `folder`; False where there is none.

    Raises UsageError for a checkpoint of another run or stage, or of a version that kept other
    things.
    """
    saved = latest_checkpoint(folder / "checkpoints", warn)
    if saved is None:
        return False
    theirs, ours = saved.get("config_hash"), position.config_hash
    if theirs and ours and theirs != ours:
        raise UsageError(
            f"the checkpoints in {folder} are another run's (seed {saved.get('seed')}, config "
            f"{theirs[:8]}; {folder.name} is of seed {position.seed}, config {ours[:8]}); move "
            "them away, or use resume=never"
        )
    try:
        position.load(saved)
        stage.load(saved)
        restore_generators(saved["generators"])
    except KeyError as error:
        raise UsageError(
            f"the checkpoints in {folder} hold no {error}: they are of another version; "
            "use resume=never"
        ) from None
    return True


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
    False where a signal came, which `stop` then knows, or `watch` of `run` ended it. Raises
    UsageError where `folder` has gone.
    """
    pace, at = stage.pace, position
    stop = Ending() if stop is None else stop
    folder.mkdir(parents=True, exist_ok=True)
    place = _place(folder)
    now = CLOCKS[pace.clock]
    start = now() - at.seconds
    workers = int(stage.device.type == "cuda") if pace.workers is None else pace.workers
    coming = stage.batches(range(at.step, pace.steps), workers)
    with at_ending(stop), closing(coming):
        since = at.step, time.perf_counter()
        while not _over(at, pace):
            values = stage.step(at.step + 1, next(coming), tracker)
            at.step += 1
            # Once a step: what `last` says, and what a checkpoint of this step keeps, agree.
            at.seconds = now() - start
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
                    score, more = _validate(stage, at, tracker)
                    record |= more
                    ended = watch is not None and not last and watch(at.step, score)
                    at.seconds = now() - start
                tracker.scalars(at.step, record)
            stopping = bool(stop) or ended
            if validates or stopping or at.step % pace.checkpoint_every == 0:
                _checked(stage, values, at.step)
                if _place(folder) != place:
                    raise UsageError(
                        f"{folder} was moved or removed while it trained; put it back, and the "
                        "same command goes on from its last checkpoint"
                    )
                state = {**at.dump(), **stage.dump(), "generators": generator_states()}
                save_checkpoint(folder / "checkpoints", at.step, state)
                prune_checkpoints(folder / "checkpoints", pace.keep, also=at.best_step)
            if stopping:
                return False
            if records:
                since = at.step, time.perf_counter()
        at.seconds = now() - start
        return not stop  # the last step has left a checkpoint


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
