"""The run shell: any stage in its folder, from the first step or a checkpoint to `result.json`."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metalearn.engine.ranks import Ranks
from metalearn.errors import Diverged, UsageError
from metalearn.runtime.files import decode_floats
from metalearn.runtime.memory import keep_freed_memory, reset_peak_memory
from metalearn.runtime.signals import at_ending, leave
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB
from metalearn.training.folder import (
    check_writable,
    commit,
    held_hash,
    leaving_nothing_of_a_refusal,
    told_of_sources,
)
from metalearn.training.loop import Watch, fit
from metalearn.training.ranks import (
    as_one,
    check_start,
    held_by_first,
    losing,
    other_ranks,
)
from metalearn.training.stage import CLOCKS, Position, Stage, resume, teller


def run(
    config: Mapping[str, Any],
    build: Callable[[Mapping[str, Any]], tuple[dict[str, Any], Stage]],
    console: Console,
    watch: Watch | None = None,
) -> float | None:
    """One run of a stage in the folder `config["run_dir"]`, which is held for this process alone.

    build: from the configuration to the one with what the starting weights say of themselves, and
    the stage. watch: as `Watch` says. Returns the best validation score, which a sweep
    maximises. A run that has finished before is shown. Of several ranks each calls this, and the
    first alone writes and prints.

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
        WandB.of(config["tracker"]),
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
