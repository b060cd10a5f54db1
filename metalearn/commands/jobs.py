"""What `metalearn train` and `metalearn evaluate` do once everything is built."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from metalearn import tree
from metalearn.backbones.norms import describe
from metalearn.commands.build import Built, build, build_dataset
from metalearn.data import ImageDataset
from metalearn.data.store import verify as verify_store
from metalearn.evaluation.plots import plot_accuracy_by_step, plot_learning_curve
from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.evaluation.report import result_table, write_episode_file, write_json
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB, read_records
from metalearn.training.folder import (
    check_writable,
    claim,
    commit,
    config_hash,
    load_weights,
    locked,
    save_weights,
)
from metalearn.training.loop import TrainState, at_sigterm, fit, resume
from metalearn.training.memory import peak_memory_bytes
from metalearn.training.settings import TrainingSettings
from metalearn.types import Meta


def run(config: dict[str, Any], console: Console) -> float | None:
    """One training job from its configuration, in its folder; returns what `train` returns.

    Raises UsageError, or DataError, before the folder is made.
    """
    check_writable(Path(config["run_dir"]))
    built = build(config)
    folder = claim(Path(config["run_dir"]), config, config["resume"])
    with locked(folder):
        if (result := finished(folder)) is not None:
            return show_finished(folder, result, console)
        return train(config, built, folder, console)


def train(config: Mapping[str, Any], built: Built, folder: Path, console: Console) -> float | None:
    """Train, select by validation, test; returns the best validation score.

    The score is mean accuracy, or minus the mean loss in regression: what a sweep maximises.
    None where SIGTERM stopped the run; the same command goes on from there.
    """
    problem, settings = built.problem, TrainingSettings(**config["training"])
    untrained = tree.map_meta(torch.clone, built.meta)
    state = TrainState(built.meta, built.outer, untrained)
    resumed = resume(
        state, folder, problem.device, lambda line: console.print(line, soft_wrap=True)
    )
    if resumed:
        console.print(f"resuming {folder} at step {state.step}", soft_wrap=True, highlight=False)
    sinks = [JsonLines(), WandB(**config["tracker"]), Progress(console)]
    with Tracker(sinks) as tracker:
        info = RunInfo(
            name=folder.name,
            folder=folder,
            config=dict(config),
            commit=commit(),
            seed=config["seed"],
            steps=settings.steps,
            resume_step=state.step if resumed else None,
            wandb_id=state.wandb_id,
        )
        state.wandb_id = tracker.start(info).get("wandb_id")
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
    values = {name: rows[:, -1].tolist() for name, rows in test.by_step.items()}
    tracker.episodes(state.step, "test", {"index": list(range(len(test.losses))), **values})
    extra: dict[str, Any] = {
        "steps": state.step,
        "selected_step": state.best_step,
        "validation_score": state.best_score,
        "seconds": state.seconds,
        "tasks_per_second": state.step * config["training"]["meta_batch"] / state.seconds,
        "weights_sha256": digest,
    }
    if config["evaluation"]["untrained"]:
        before = _evaluate(built, untrained).interval(test.measure)
        extra[f"untrained_{test.measure}"] = before.mean
        extra["untrained_half_width"] = before.half_width
    records = list(read_records(folder / "metrics.jsonl"))
    plot_learning_curve(records, folder / "learning_curve.png")
    result = write_result(config, built, test, folder, extra)
    tracker.summary(result)
    return result


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that reached its end, or None."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def show_finished(folder: Path, result: Mapping[str, Any], console: Console) -> float | None:
    """Print a finished run's table again; returns its validation score."""
    console.print(
        f"{folder} has finished before; resume=never trains anew in a fresh folder",
        soft_wrap=True,
        highlight=False,
    )
    console.print(result_table(result))
    return result["validation_score"]


def prepare_data(config: Mapping[str, Any], console: Console, verify: bool = False) -> None:
    """Prepare a data set and print what it holds; `verify` reads every byte of it again."""
    started = time.monotonic()
    dataset = build_dataset(config)
    table = Table(title=config["dataset"]["_target_"].rpartition(".")[2], show_header=False)
    if isinstance(dataset, ImageDataset):
        images = dataset.store.images
        if verify:
            verify_store(Path(str(images.filename)).parent)  # type: ignore[attr-defined]
        table.add_row("images", f"{len(images)} of {'x'.join(map(str, dataset.image_shape))}")
        for split in dataset.splits:
            table.add_row(f"{split} classes", str(dataset.class_count(split)))
        table.add_row("store", f"{images.nbytes / 2**20:.1f} MiB")
        table.add_row("hash", dataset.digest + (" (verified)" if verify else ""))
    else:
        table.add_row("family", repr(dataset))
    table.add_row("time", f"{time.monotonic() - started:.1f} s")
    console.print(table)


def evaluate_run(
    config: Mapping[str, Any], built: Built, run: Path, console: Console
) -> Mapping[str, Any]:
    """Measure the selected weights of a finished run again, with the settings of `config`.

    Writes `<run>/evaluations/<split>-<manifest>-<steps>/`; returns the result.
    """
    started = time.monotonic()
    meta = load_weights(run / "weights.safetensors", built.meta)
    report = _evaluate(built, meta)
    seconds = time.monotonic() - started
    count = report.by_step["loss"].shape[1] - 1
    folder = run / "evaluations" / f"{built.test.split}-{built.test.hash[:8]}-{count}steps"
    folder.mkdir(parents=True, exist_ok=True)
    extra = {
        "seconds": seconds,
        "tasks_per_second": built.test.episodes / seconds,
        "weights_sha256": save_weights(folder / ".weights", meta),
    }
    (folder / ".weights").unlink()
    result = write_result(config, built, report, folder, extra)
    if (run / "metrics.jsonl").exists():
        plot_learning_curve(
            list(read_records(run / "metrics.jsonl")), folder / "learning_curve.png"
        )
    console.print(result_table(result))
    console.print(f"evaluation folder: {folder}", soft_wrap=True, highlight=False)
    return result


def write_result(
    config: Mapping[str, Any],
    built: Built,
    report: EvalReport,
    folder: Path,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `result.json`, `episodes.csv` and the picture by inner step; returns the result."""
    measure = report.measure
    ways, shots, queries = built.test.source.shape
    count = report.by_step[measure].shape[1]
    by_step = [report.interval(measure, step) for step in range(count)]

    def name(node: str) -> str:
        return config[node]["_target_"].rpartition(".")[2]

    final = report.interval(measure)
    result: dict[str, Any] = {
        measure: final.mean,
        f"{measure}_half_width": final.half_width,
        f"{measure}_by_step": [[step.mean, step.half_width] for step in by_step],
        "episodes": final.count,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "norm_policy": describe(built.problem.algo.net.module),
        "manifest_hash": report.manifest_hash,
        "split": built.test.split,
        "algorithm": name("algorithm"),
        "gradient": name("gradient"),
        "backbone": name("backbone"),
        "dataset": name("dataset"),
        "seed": config["seed"],
        "config_hash": config_hash(config),
        "commit": commit(),
        "peak_memory_bytes": peak_memory_bytes(built.problem.device),
        **extra,
    }
    write_episode_file(folder / "episodes.csv", _rows(report))
    task = f"{ways}-way {shots}-shot" if ways else f"{shots} points"
    plot_accuracy_by_step(
        by_step,
        folder / f"{measure}_by_step.png",
        title=f"{name('algorithm')} on {name('dataset')}, {task}",
        label="query accuracy" if ways else "mean squared error",
        chance=1 / ways if ways else None,
        percent=ways is not None,
    )
    write_json(folder / "result.json", result)
    return result


def _evaluate(built: Built, meta: Meta) -> EvalReport:
    problem = built.problem
    return evaluate(
        problem.algo, meta, built.test, problem.evaluation_steps, problem.batching, problem.device
    )


def _rows(report: EvalReport) -> list[dict[str, Any]]:
    measures: dict[str, np.ndarray] = report.by_step
    return [
        {
            "index": index,
            **{name: float(values[index, -1]) for name, values in measures.items()},
            f"{report.measure}_by_step": [float(v) for v in measures[report.measure][index]],
        }
        for index in range(len(report.losses))
    ]
