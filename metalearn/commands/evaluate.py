"""`metalearn evaluate`: the selected weights of a finished run, measured again."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from metalearn.commands.building import words
from metalearn.commands.building.config import reopen
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.meta_training import build
from metalearn.data import ImageDataset, Mixture
from metalearn.errors import UsageError
from metalearn.evaluation.report import not_finite
from metalearn.tracking import JsonLines, RunInfo, Tracker, WandB
from metalearn.training.episodic import Episodic, last_step
from metalearn.training.folder import commit, config_hash, load_weights, weights_sha256
from metalearn.training.result import plotted, write_result
from metalearn.training.run import finished
from metalearn.training.stage import teller


def main(arguments: list[str], console: Console) -> None:
    """`metalearn evaluate run=<folder> [trust=true] [overrides]`."""
    trust, arguments = words.trusted(arguments)
    runs = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(runs) != 1 or not runs[0]:
        raise UsageError("evaluate needs one run: metalearn evaluate run=<folder> [overrides]")
    run = Path(runs[0])
    overrides = [a for a in arguments if not a.startswith("run=")]
    overrides = [f"evaluation.{a}" if a.startswith("manifest=") else a for a in overrides]
    config = reopen(run, overrides, trust, teller(console))
    if not (run / "weights.safetensors").exists():
        raise UsageError(f"{run} has not finished; the command that started it goes on with it")
    if "accuracy_of_candidates" in (finished(run) or {}):  # as `metalearn try` leaves it
        raise UsageError(
            f"{run} was made of your own pictures and has no test episodes; its estimate is in "
            f"result.json, and metalearn predict run={run} uses it"
        )
    _check_images(run, config, overrides)
    _, stage = build(config, trained=True)
    evaluate(config, stage, run, console)


def _check_images(run: Path, config: Mapping[str, Any], overrides: list[str]) -> None:
    """Raise UsageError where the images or class splits are not those of the run."""
    result, dataset = finished(run), read_data(config).dataset
    if result is None or not isinstance(dataset, ImageDataset | Mixture):
        return
    told, found = result.get("dataset_hash"), dataset.digest
    if told is None:  # an older run, whose test episodes say the same
        kept = ("dataset.", "device=")
        own = reopen(run, [o for o in overrides if o.lstrip("+").startswith(kept)])
        told, found = result["manifest_hash"], read_data(own).test().hash
    if told != found:
        raise UsageError(
            f"the images or class splits are not those that {run} was trained with (hash "
            f"{found[:12]}, not {told[:12]}); say where these are by dataset.root=<folder> or "
            "dataset.archive=<file>, or train anew"
        )


def evaluate(
    config: Mapping[str, Any], stage: Episodic, run: Path, console: Console
) -> Mapping[str, Any]:
    """Measure with the settings of `config`; the result, also in
    `<run>/evaluations/<split>-<manifest>-<config>/`."""
    sha256 = (finished(run) or {}).get("weights_sha256")
    meta, test = load_weights(run / "weights.safetensors", stage.meta, sha256), stage.test
    name = f"{test.split}-{test.hash[:8]}-{config_hash(config)[:8]}"
    folder = run / "evaluations" / name
    folder.mkdir(parents=True, exist_ok=True)
    source = commit()
    info = RunInfo(f"{run.name}-{name}", folder, dict(config), source, config["seed"], steps=0)
    with Tracker([JsonLines(), WandB.of(config["tracker"])]) as tracker:
        tracker.start(info)
        started = time.monotonic()
        report = stage.evaluate(meta, test)
        seconds = time.monotonic() - started
        tracker.episodes(0, test.split, last_step(report))
        extra = {
            "seconds": seconds,
            "tasks_per_second": test.episodes / seconds,
            "commit": source,
            "weights_sha256": weights_sha256(meta),
        }
        result = write_result(config, stage.algo, test, stage.device, report, folder, run, extra)
        if plotted(config):
            from metalearn.evaluation.dense_sheet import draw_answers  # imports matplotlib

            draw_answers(stage, meta, test, folder)
        tracker.summary(result)
    console.print(stage.table(result))
    say = teller(console)
    if lost := result["not_finite_episodes"]:
        say(f"not finite: {not_finite(lost, result['episodes'])}")
    say(f"evaluation folder: {folder}")
    return result
