"""Runs that are kept under `experiments/<table>/<cell>/seed<k>/`, and whether they keep their word.

A record is what a run's command wrote: its configuration, its result, every test episode, the
pictures, and the validation curve in `curve.csv` (the records of every step are too large to keep).
"""

import csv
import io
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import UsageError
from metalearn.evaluation.statistics import mean_interval
from metalearn.runtime.files import write_atomic
from metalearn.sweeps.runs import CURVE, FinishedRun, flat, read_run, validation
from metalearn.training.folder import read_config
from metalearn.training.old_configs import renewed

KEPT = ("config.yaml", "result.json", "episodes.csv", "learning_curve.png")
KEPT += ("accuracy_by_step.png", "loss_by_step.png")
_ELSEWHERE = ("name", "seed", "run_dir", "resume", "tracker", "sources", "device")
_ELSEWHERE += ("training.workers", "training.keep", "training.checkpoint_every")
_ELSEWHERE += ("backbone.weights", "backbone.sha256")  # of the pre-training beside it
_PACE = ("algorithm", "classifier", "gradient", "inner", "backbone", "head", "adaptation", "loss")
_PACE += ("dataset", "sampling", "images", "augmentation", "precision", "batching", "capture")
_PACE += ("lite",)
_SHAPE = ("ways", "shots", "queries")
"""What a meta-step's time depends on."""


def keep(run: Path, place: Path) -> None:
    """Copy what is kept of the finished run in `run` to `place`, its result last."""
    for name in sorted(KEPT, key="result.json".__eq__):
        if (run / name).is_file():
            place.mkdir(parents=True, exist_ok=True)
            if name == "result.json" and (found := validation(run)):
                steps, values = list(found), list(found.values())
                write_atomic(place / CURVE, _curve(steps, values))
            shutil.copyfile(run / name, place / name)


def _curve(steps: list[int], values: list[float]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["step", "validation"])
    writer.writerows(zip(steps, values, strict=True))
    return text.getvalue()


def record(place: Path) -> FinishedRun | None:
    """The record in `place`, None where there is none. Raises UsageError for one that cannot be
    read."""
    return read_run(place) if (place / "result.json").is_file() else None


def after(run: FinishedRun, step: int) -> np.ndarray:
    """`[E]`, the measure in each test episode after `step` inner steps. Raises UsageError where
    the record has none."""
    name = f"{run.measure}_after_{step}"
    with (run.folder / "episodes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if any(row.get(name) is None for row in rows):
        raise UsageError(f"{run.folder}/episodes.csv has no {name}; take {step} out of after:")
    return np.array([float(row[name]) for row in rows])


def complaints(run: FinishedRun, seed: int, wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a record of `seed`, a line each: figures that its episodes do not give,
    and settings that are not those of `wanted`, its configuration as it is now."""
    told, found = run.result, mean_interval(run.values)
    if told["seed"] != seed:
        yield f"{run.folder} is of seed {told['seed']}"
    if told["episodes"] != found.count:
        said = f"{run.folder}/result.json says {told['episodes']} episodes"
        yield f"{said}, episodes.csv has {found.count}"
    steps = told.get(f"{run.measure}_by_step") or []
    said = {run.measure: told[run.measure], "half-width": told[f"{run.measure}_half_width"]}
    have = {run.measure: found.mean, "half-width": found.half_width}
    if len(steps) > 1:
        for step, (mean, _) in enumerate(steps):
            said[f"{run.measure} after {step} steps"] = mean
            have[f"{run.measure} after {step} steps"] = float(after(run, step).mean())
    for name, value in said.items():
        if not abs(value - have[name]) <= 1e-9 * max(1.0, abs(value)):
            yield (
                f"{run.folder}/result.json says {name} {value:.6g}, its episodes give "
                f"{have[name]:.6g}"
            )
    for name, mine, theirs in differences(run.config, wanted):
        yield f"{run.folder} was trained with {name}={mine}, the table's run has {theirs}"


def differences(
    held: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Settings that both configurations have and that are not the same in both: a key that an
    older version did not have yet says nothing."""
    mine, theirs = _plain(held), _plain(wanted)
    filled_in = "images." if held["backbone"].get("weights") else None  # as the weights expect
    for name in sorted(mine.keys() & theirs.keys()):
        if filled_in and name.startswith(filled_in) and theirs[name] is None:
            continue
        if mine[name] != theirs[name]:
            yield name, mine[name], theirs[name]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    places = re.compile(r"(?:^|\.)(?:root|archive|splits|manifest)$")
    return {
        name: value
        for name, value in flat(renewed(config))
        if name.split(".")[0] not in _ELSEWHERE
        and name not in _ELSEWHERE
        and not places.search(name)
    }


def same_pace(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a meta-step of both is the same work: not at another rate, but on as many tasks of
    the same shape."""
    if _shape(held) != _shape(wanted):
        return False
    names = (name for name, _, _ in differences(held, wanted) if name != "inner.rate")
    return not any(name.partition(".")[0] in _PACE for name in names)


def _shape(config: Mapping[str, Any]) -> list[Any]:
    training, episodes = config["training"], config["episodes"]
    shape = [training.get(name) or episodes[name] for name in _SHAPE]
    return [training["meta_batch"], *shape]


def rates(folder: Path) -> list[tuple[Mapping[str, Any], float, Path]]:
    """Of every record below `folder`: configuration, tasks a second in training, and its folder."""
    found = []
    for path in sorted(folder.rglob("result.json")):
        settings = path.parent / "config.yaml"
        if settings.is_file():
            try:
                run = read_run(path.parent)
                config = read_config(settings)
            except UsageError:
                continue
            if run is not None and (rate := run.result.get("tasks_per_second")):
                found.append((config, float(rate), path.parent))
    return found
