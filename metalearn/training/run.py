"""The run shell: any stage in its folder, from the first step or a checkpoint to `result.json`."""

import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from metalearn.errors import Diverged, UsageError
from metalearn.runtime.files import decode_floats
from metalearn.runtime.memory import keep_freed_memory, peak_memory_bytes, reset_peak_memory
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB
from metalearn.training.checkpoint import (
    generator_states,
    latest_checkpoint,
    prune_checkpoints,
    restore_generators,
    save_checkpoint,
)
from metalearn.training.folder import check_writable, claim, commit, locked
from metalearn.training.stage import Pace, Position, Stage


@contextmanager
def at_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Do `act` at SIGTERM instead of dying; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(
    config: Mapping[str, Any],
    build: Callable[[Mapping[str, Any]], tuple[dict[str, Any], Stage]],
    console: Console,
) -> float | None:
    """One run of a stage in the folder `config["run_dir"]`, which is held for this process alone.

    build: from the configuration to the one with what the starting weights say of themselves, and
    the stage. Returns the best validation score, which a sweep maximises; None where SIGTERM
    stopped the run: the same command goes on from there. A run that has finished before is shown.

    Raises UsageError, or DataError, before the folder is made.
    """
    folder = Path(config["run_dir"])
    check_writable(folder)
    config, stage = build(config)
    before = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if config["resume"] == "never":
        folder, before = claim(folder, config, "never"), set()
    with locked(folder):
        claim(folder, config, "auto")
        if (result := finished(folder)) is not None:
            _say(
                console,
                f"{folder} has finished before; resume=never trains anew in a fresh folder",
            )
            console.print(stage.table(result))
            _check_finite(result)
            return result["validation_score"]
        # Dropout draws from torch's global generators: seeded for this run, put back after it.
        with leaving_nothing_of_a_refusal(folder, before), torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            return _train(config, stage, folder, console)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that reached its end, or None."""
    path = folder / "result.json"
    return decode_floats(json.loads(path.read_text())) if path.exists() else None


def _train(config: Mapping[str, Any], stage: Stage, folder: Path, console: Console) -> float | None:
    keep_freed_memory()
    stage.begin(folder, console)
    pace, position, source = stage.pace, Position(), commit()
    reset_peak_memory(stage.device)
    resumed = resume(stage, position, folder, lambda line: _say(console, line))
    if resumed:
        if position.commit != source:
            _say(console, f"this run began at commit {position.commit}, now {source}")
        _say(console, f"resuming {folder} at step {position.step}")
    with Tracker([JsonLines(), WandB(**config["tracker"]), Progress(console)]) as tracker:
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
        )
        position.commit = source
        position.wandb_id = tracker.start(info).get("wandb_id", position.wandb_id)
        if not fit(stage, position, folder, tracker):
            tracker.close("interrupted")
            _say(
                console,
                f"stopped at step {position.step} of {pace.steps} after a checkpoint; "
                "the same command goes on from there",
            )
            return None
        try:
            with at_sigterm(lambda: sys.exit(0)):
                result = stage.finish(config, position, folder, tracker)
                tracker.summary(result)
        except SystemExit:
            console.print("stopped during the test; the same command goes on from there")
            raise
    console.print(stage.table(result))
    _say(console, f"run folder: {folder}")
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


@contextmanager
def leaving_nothing_of_a_refusal(folder: Path, before: set[str]) -> Iterator[None]:
    """Where a run fails before its first checkpoint, take away what it made in `folder`, which
    would refuse the corrected command. One that diverged stays, and one that went on.

    before: the names that were in `folder` before the run claimed it.
    """
    try:
        yield
    except Diverged:
        raise
    except Exception:
        kept = {path.name for path in folder.iterdir()}
        if "config.yaml" in before or {"checkpoints", "result.json"} & kept:
            raise
        for name in kept - before:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not before:
            folder.rmdir()
        raise


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False)


def resume(stage: Stage, position: Position, folder: Path, warn: Callable[[str], None]) -> bool:
    """Load the newest readable checkpoint under `folder`; False where there is none.

    Raises UsageError for a checkpoint of another stage, or of a version that kept other things.
    """
    saved = latest_checkpoint(folder / "checkpoints", warn)
    if saved is None:
        return False
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


def fit(stage: Stage, position: Position, folder: Path, tracker: Tracker) -> bool:
    """Train until the steps or the seconds are over, an early stop, or SIGTERM.

    `stage` and `position` are updated in place; checkpoints go to `folder/checkpoints`. Returns
    False where SIGTERM ended it early.
    """
    pace, at = stage.pace, position
    clock = time.monotonic() - at.seconds
    workers = pace.workers
    if workers is None:
        workers = 1 if stage.device.type == "cuda" else 0
    stop = threading.Event()
    coming = stage.batches(range(at.step, pace.steps), workers)
    with at_sigterm(stop.set), closing(coming):
        since = at.step, time.perf_counter()
        while not _over(at, pace):
            values = stage.step(at.step + 1, next(coming), tracker)
            at.step += 1
            # Once a step: what `last` says, and what a checkpoint of this step keeps, agree.
            at.seconds = time.monotonic() - clock
            last = at.step == pace.steps or _out_of_time(at, pace)
            validates = last or at.step % pace.validate_every == 0
            records = validates or at.step % pace.record_every == 0
            if records:
                record = _checked(stage, values, at.step)
                rate = (at.step - since[0]) * stage.size / (time.perf_counter() - since[1])
                record[f"{stage.unit}_per_second"] = rate
                record["peak_memory_bytes"] = peak_memory_bytes(stage.device)
                if validates:
                    record |= _validate(stage, at, tracker)
                    at.seconds = time.monotonic() - clock
                tracker.scalars(at.step, record)
            stopping = stop.is_set()
            if validates or stopping or at.step % pace.checkpoint_every == 0:
                _checked(stage, values, at.step)
                state = {**at.dump(), **stage.dump(), "generators": generator_states()}
                save_checkpoint(folder / "checkpoints", at.step, state)
                prune_checkpoints(folder / "checkpoints", pace.keep, also=at.best_step)
            if stopping and not last:
                return False
            if records:
                since = at.step, time.perf_counter()
        at.seconds = time.monotonic() - clock
    return True


def _checked(stage: Stage, values: Mapping[str, Tensor | float], step: int) -> dict[str, Any]:
    numbers = {name: float(value) for name, value in values.items()}
    stage.check(numbers, step)
    return numbers


def _validate(stage: Stage, at: Position, tracker: Tracker) -> Mapping[str, float]:
    score, record, newest = stage.validate(at.step, tracker)
    best = at.best_score
    if newest or best is None or best != best or score > best:  # a NaN is no score
        at.best_score, at.best_step = score, at.step
        stage.select()
    return record


def _over(at: Position, pace: Pace) -> bool:
    if at.step >= pace.steps or _out_of_time(at, pace):
        return True
    waited = at.step - at.best_step
    return pace.patience is not None and waited >= pace.patience * pace.validate_every


def _out_of_time(at: Position, pace: Pace) -> bool:
    """Whether the seconds are used up; a first step is always taken."""
    return pace.seconds is not None and at.step > 0 and at.seconds >= pace.seconds
