"""What `metalearn train` and `metalearn evaluate` do once everything is built."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from metalearn import tree
from metalearn.commands.build import Built, build
from metalearn.engine.autotune import Autotuned
from metalearn.evaluation.on_features import evaluate_once
from metalearn.evaluation.plots import plot_learning_curve
from metalearn.evaluation.protocol import EvalReport
from metalearn.evaluation.report import result_table
from metalearn.functional.precision import slowdown
from metalearn.runtime.files import decode_floats, write_atomic
from metalearn.runtime.memory import keep_freed_memory, reset_peak_memory
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB, read_records
from metalearn.training.episodic import Problem, TrainState, at_sigterm, fit, resume
from metalearn.training.folder import (
    check_writable,
    claim,
    commit,
    config_hash,
    load_weights,
    locked,
    save_weights,
    weights_sha256,
)
from metalearn.training.result import write_result
from metalearn.training.settings import TrainingSettings
from metalearn.types import Meta


def run(config: dict[str, Any], console: Console) -> float | None:
    """One training job from its configuration, in its folder; returns what `train` returns.

    Raises UsageError, or DataError, before the folder is made.
    """
    check_writable(Path(config["run_dir"]))
    built = build(config)
    config = built.config

    def act(folder: Path) -> float | None:
        if built.weights is not None:
            console.print(str(built.weights), soft_wrap=True, highlight=False)
        return train(config, built, folder, console)

    return in_folder(config, console, act)


def in_folder(
    config: dict[str, Any],
    console: Console,
    act: Callable[[Path], float | None],
    table: Callable[[Mapping[str, Any]], Table] = result_table,
) -> float | None:
    """What `act` does in the run folder of `config`, which is held for this process alone.

    Where the run has finished before, its result is shown in a `table` instead.
    """
    folder = Path(config["run_dir"])
    if config["resume"] == "never":
        folder = claim(folder, config, "never")
    with locked(folder):
        claim(folder, config, "auto")
        if (result := finished(folder)) is not None:
            return show_finished(folder, result, console, table)
        # Dropout draws from torch's global generators: seeded for this run, put back after it.
        with torch.random.fork_rng():
            torch.manual_seed(config["seed"])
            return act(folder)


def train(config: Mapping[str, Any], built: Built, folder: Path, console: Console) -> float | None:
    """Train, select by validation, test; returns the best validation score.

    The score is mean accuracy, or minus the mean loss in regression: what a sweep maximises.
    None where SIGTERM stopped the run; the same command goes on from there.
    """
    keep_freed_memory()
    warn_of_emulation(config["precision"], built.problem.device, console)
    settings = TrainingSettings(**config["training"])
    problem = tuned(built, settings, folder, console)
    source = commit()
    reset_peak_memory(problem.device)
    untrained = tree.map_meta(torch.clone, built.meta)
    state = TrainState(built.meta, built.outer, untrained)
    resumed = resume(
        state, folder, problem.device, lambda line: console.print(line, soft_wrap=True)
    )
    if resumed:
        if state.commit != source:
            console.print(f"this run began at commit {state.commit}, now {source}", soft_wrap=True)
        console.print(f"resuming {folder} at step {state.step}", soft_wrap=True, highlight=False)
    sinks = [JsonLines(), WandB(**config["tracker"]), Progress(console)]
    with Tracker(sinks) as tracker:
        info = RunInfo(
            name=folder.name,
            folder=folder,
            config=dict(config),
            commit=source,
            seed=config["seed"],
            steps=settings.steps,
            resume_step=state.step if resumed else None,
            wandb_id=state.wandb_id,
            seconds=settings.seconds and max(settings.seconds - state.seconds, 0.0),
        )
        state.commit = source
        state.wandb_id = tracker.start(info).get("wandb_id", state.wandb_id)
        if not fit(problem, settings, state, folder, tracker):
            tracker.close("interrupted")
            console.print(
                f"stopped at step {state.step} of {settings.steps} after a checkpoint; "
                "the same command goes on from there",
                soft_wrap=True,
            )
            return None
        try:
            with at_sigterm(lambda: sys.exit(0)):
                result = _test(config, built, state, untrained, folder, tracker)
        except SystemExit:
            console.print("stopped during the test; the same command goes on from there")
            raise
    console.print(result_table(result))
    console.print(f"run folder: {folder}", soft_wrap=True, highlight=False)
    return state.best_score


def warn_of_emulation(precision: str, device: torch.device, console: Console) -> None:
    """Say so where the device computes in `precision` more slowly than in float32."""
    if (times := slowdown(precision, device)) > _EMULATED:
        console.print(
            f"precision={precision}: this processor takes {times:.0f} times as long for it as "
            "for fp32",
            soft_wrap=True, highlight=False,
        )  # fmt: skip


_EMULATED = 2.0  # times float32


def tuned(built: Built, settings: TrainingSettings, folder: Path, console: Console) -> Problem:
    """The problem with `batching=auto` made a plan: as this run had it before, or measured now."""
    problem, engine = built.problem, built.problem.engine
    if engine.batching != "auto" or not hasattr(problem.gradient, "task"):
        return problem
    path = folder / "engine.json"
    if path.exists():
        answer = Autotuned.decode(path.read_text())
    else:
        episodes = problem.train.batch("train", range(settings.meta_batch))
        episodes = episodes.map(lambda t: t.to(problem.device))
        coming = settings.steps * settings.meta_batch
        with console.status("measuring how the engine runs this fastest; the answer is kept"):
            answer = engine.autotune(problem.gradient, problem.algo, built.meta, episodes, coming)
        write_atomic(path, answer.encode())
    console.print(f"engine: {answer}", soft_wrap=True, highlight=False)
    return dataclasses.replace(problem, engine=engine.with_plan(answer.plan))


def _test(
    config: Mapping[str, Any],
    built: Built,
    state: TrainState,
    untrained: Meta,
    folder: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """Test the selected weights, and write everything that the end of a run leaves behind."""
    digest = save_weights(folder / "weights.safetensors", state.best)
    test = _evaluate(built, state.best)
    tracker.episodes(state.step, "test", _last_step(test))
    extra: dict[str, Any] = {
        "steps": state.step,
        "selected_step": state.best_step,
        "validation_score": state.best_score,
        "seconds": state.seconds,
        "tasks_per_second": state.step * config["training"]["meta_batch"] / state.seconds,
        "commit": state.commit,
        "weights_sha256": digest,
        "last_weights_sha256": weights_sha256(state.meta),
    }
    if config["evaluation"]["untrained"]:
        before = _evaluate(built, untrained).interval(test.measure)
        extra[f"untrained_{test.measure}"] = before.mean
        extra[f"untrained_{test.measure}_half_width"] = before.half_width
    records = list(read_records(folder / "metrics.jsonl"))
    plot_learning_curve(records, folder / "learning_curve.png")
    result = write_result(config, built, test, folder, extra)
    tracker.summary(result)
    return result


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that reached its end, or None."""
    path = folder / "result.json"
    return decode_floats(json.loads(path.read_text())) if path.exists() else None


def show_finished(
    folder: Path,
    result: Mapping[str, Any],
    console: Console,
    table: Callable[[Mapping[str, Any]], Table] = result_table,
) -> float | None:
    """Print a finished run's table again; returns its validation score."""
    console.print(
        f"{folder} has finished before; resume=never trains anew in a fresh folder",
        soft_wrap=True,
        highlight=False,
    )
    console.print(table(result))
    return result["validation_score"]


def evaluate_run(
    config: Mapping[str, Any], built: Built, run: Path, console: Console
) -> Mapping[str, Any]:
    """Measure the selected weights of a finished run again, with the settings of `config`.

    Writes `<run>/evaluations/<split>-<manifest>-<config>/`; returns the result.
    """
    meta = load_weights(run / "weights.safetensors", built.meta)
    name = f"{built.test.split}-{built.test.hash[:8]}-{config_hash(config)[:8]}"
    folder = run / "evaluations" / name
    folder.mkdir(parents=True, exist_ok=True)
    source = commit()
    info = RunInfo(f"{run.name}-{name}", folder, dict(config), source, config["seed"], steps=0)
    with Tracker([JsonLines(), WandB(**config["tracker"])]) as tracker:
        tracker.start(info)
        started = time.monotonic()
        report = _evaluate(built, meta)
        seconds = time.monotonic() - started
        tracker.episodes(0, built.test.split, _last_step(report))
        extra = {
            "seconds": seconds,
            "tasks_per_second": built.test.episodes / seconds,
            "commit": source,
            "weights_sha256": weights_sha256(meta),
        }
        result = write_result(config, built, report, folder, extra)
        tracker.summary(result)
    records = list(read_records(run / "metrics.jsonl"))
    plot_learning_curve(records, folder / "learning_curve.png")
    console.print(result_table(result))
    console.print(f"evaluation folder: {folder}", soft_wrap=True, highlight=False)
    return result


def _last_step(report: EvalReport) -> dict[str, list[float]]:
    """Every episode's index and its metrics after the last inner step."""
    values = {name: rows[:, -1].tolist() for name, rows in report.by_step.items()}
    return {"index": list(range(len(report.losses))), **values}


def _evaluate(built: Built, meta: Meta) -> EvalReport:
    problem = built.problem
    return evaluate_once(
        problem.algo, meta, built.test, problem.evaluation_steps, problem.engine, problem.device
    )
