"""Finished runs as they lie in their folders: settings, result, and every test episode."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metalearn.errors import UsageError
from metalearn.evaluation.statistics import measure_of
from metalearn.tracking import read_records
from metalearn.training.result import last_word

_NOT_METHOD = ("seed", "run_dir", "name", "resume", "tracker", "sources", "device")
_NOT_METHOD += ("training.workers", "training.keep", "training.checkpoint_every")
"""Settings that two runs of one method may differ in."""
CURVE = "curve.csv"


@dataclass(frozen=True)
class FinishedRun:
    """values: `[E]`, the accuracy in each test episode, the loss where that is regression."""

    folder: Path
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    values: np.ndarray

    @property
    def seed(self) -> int:
        """Of its draws."""
        return self.result["seed"]

    @property
    def measure(self) -> str:
        """`accuracy` or `loss`."""
        return measure_of(self.result)

    @property
    def condition(self) -> str:
        """What it was tested on, a column of a table."""
        told, ways = self.result, self.result.get("ways")
        task = f"{ways}-way {told['shots']}-shot" if ways else f"{told['shots']}-shot"
        return f"{told['dataset']} {task}"

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Every setting of the method by its path in the configuration; a class by its name."""
        return dict(flat(self.config))


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of the method, as `FinishedRun.settings` has them."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path in _NOT_METHOD or key == "_partial_":
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}.")
        elif key == "_target_":
            yield prefix.rstrip("."), last_word(value)
        else:
            yield path, value


def read_runs(paths: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Every finished run in `paths` and below them, and a line for each folder that was left out:
    it has not finished, or is of pre-training. Later measurements of a run by `evaluate` count
    where their own folder is named.

    Raises UsageError for a path without any run, and for a result that cannot be read.
    """
    runs: dict[Path, FinishedRun] = {}
    left: dict[Path, str] = {}
    for path in paths:
        results = [path / "result.json"]
        if not results[0].is_file():
            found = sorted(path.rglob("result.json"))
            results = [r for r in found if "evaluations" not in r.relative_to(path).parts]
        begun = [path, *(c.parent for c in sorted(path.rglob("config.yaml")))]
        begun = [f for f in begun if (f / "config.yaml").is_file()]
        left |= {f: "has not finished" for f in begun if not (f / "result.json").is_file()}
        if not results and not begun:
            raise UsageError(f"{path} holds no run: neither result.json nor config.yaml is there")
        for result in results:
            if (run := read_run(result.parent)) is None:
                left[result.parent] = "is of no test episodes"
            else:
                runs.setdefault(result.parent.resolve(), run)
    if not runs:
        raise UsageError(
            f"no run in {', '.join(map(str, paths))} has finished; the command that started one "
            "goes on with it"
        )
    return list(runs.values()), [f"{folder} {why}" for folder, why in left.items()]


def read_run(folder: Path) -> FinishedRun | None:
    """The finished run in a folder; None for a result that is of no list of test episodes, as
    pre-training's. Raises UsageError for one that cannot be read."""
    settings = folder / "config.yaml"
    if not settings.is_file():  # of an evaluation, whose run has it
        settings = folder.parents[1] / "config.yaml"
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if "manifest_hash" not in result:
            return None
        result.setdefault("transductive", False)  # of a run from before there were such methods
        config = yaml.safe_load(settings.read_text(encoding="utf-8"))
        with (folder / "episodes.csv").open(encoding="utf-8", newline="") as file:
            measure = measure_of(result)
            values = np.array([float(row[measure]) for row in csv.DictReader(file)])
        run = FinishedRun(folder, config, result, values)
        if run.seed is None or not run.condition or not run.settings:
            raise ValueError("no seed, or no settings")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{folder} cannot be read ({type(error).__name__}: {error}); leave it out, or train it "
            "anew"
        ) from None
    if not len(values) or not np.isfinite(values).all():
        raise UsageError(
            f"{folder} has test episodes of which {measure} is no number, or none at all; leave "
            "it out"
        )
    return run


def validation(folder: Path) -> dict[int, float]:
    """By meta-step, the mean over the validation episodes, from the records of a run or from the
    `curve.csv` that is kept of them; {} where neither is there."""
    if (curve := folder / CURVE).is_file():
        with curve.open(encoding="utf-8", newline="") as file:
            return {int(row["step"]): float(row["validation"]) for row in csv.DictReader(file)}
    path, found = folder / "metrics.jsonl", dict[int, float]()
    for one in read_records(path) if path.is_file() else ():
        if one.get("kind") == "episodes" and one.get("split") == "val":
            values = one[measure_of(one)]
            found[one["step"]] = float(np.mean(values))
    return found
