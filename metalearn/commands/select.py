"""`metalearn select`: backbones ranked for a data set without training on it.

Each looks once at a few images of validation classes; the scores are of its features, or of what it
makes of the classes that it was trained on.
"""

import functools
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from metalearn.backbones.heads import head_name
from metalearn.backbones.norms import describe, inductive
from metalearn.benchmarks import machine
from metalearn.commands.building.episodes import read_data
from metalearn.commands.building.hydra_runs import overrides_of
from metalearn.commands.building.network import build_module
from metalearn.commands.building.texts import check_texts
from metalearn.commands.parts.select_plan import Named, SelectionPlan, plan
from metalearn.data import ImageDataset, TensorDataset
from metalearn.episodes import FewShotEpisodes, ImageTransform
from metalearn.errors import DataError, UsageError
from metalearn.evaluation.report import write_json
from metalearn.evaluation.selection.looks import (
    NEAREST_CENTROID,
    REACHED,
    Candidate,
    accuracies,
    look,
    scored,
)
from metalearn.evaluation.selection.sample import sample
from metalearn.evaluation.selection.table import markdown, summarised, table
from metalearn.functional import pure
from metalearn.runtime.device import torch_device
from metalearn.runtime.files import decode_floats, write_atomic
from metalearn.training.folder import check_writable, commit, held
from metalearn.training.stage import teller

FILE = "selection.json"


def main(arguments: list[str], console: Console) -> None:
    """`metalearn select [overrides]`; `--cfg job` prints the composed configuration."""
    overrides = overrides_of(arguments, "select")
    if overrides is None:
        return
    asked = plan(overrides)
    check_writable(Path(asked.config["run_dir"]))
    with held(Path(asked.config["run_dir"]), asked.config, asked.config["resume"]) as folder:
        made = _selected(asked, folder, overrides, console)
    if made["rows"]:
        console.print()
        console.print(table(made))
    console.print(f"selection folder: {folder}", highlight=False, soft_wrap=True)
    if made["failed"]:
        raise UsageError(f"failed: {', '.join(made['failed'])}; each said why above")


def _selected(
    asked: SelectionPlan, folder: Path, overrides: Sequence[str], console: Console
) -> dict[str, Any]:
    config, say = asked.config, teller(console)
    data = read_data({**config, "sampling": None, "augmentation": None}).dataset
    if not isinstance(data, ImageDataset | TensorDataset):
        raise UsageError("select needs one data set with classes; see metalearn list dataset")
    samples = {
        split: sample(data, split, config["sample"]["classes"], config["sample"]["images"], seed)
        for split, seed in _splits(asked).items()
    }
    for split, some in samples.items():
        if config["accuracy"] or NEAREST_CENTROID in asked.scores:
            for shots in config["episodes"]["shots"]:
                FewShotEpisodes(some, **{**config["episodes"], "shots": shots}).check(split)
    results, failed = [], {}
    for number, (name, named) in enumerate(asked.candidates.items(), 1):
        path = folder / "candidates" / f"{_file_name(name)}.json"
        if path.is_file():
            results.append(decode_floats(json.loads(path.read_text(encoding="utf-8"))))
            continue
        say(f"{name} ({number} of {len(asked.candidates)})")
        try:
            result = _measured(asked, name, named, samples, say)
        except (UsageError, DataError) as error:
            failed[name] = str(error)
            say(f"{name} failed: {error}")
            continue
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
        results.append(result)
    for result in results:
        result["reached"] |= asked.reached.get(result["candidate"], {})
    results.sort(key=functools.partial(_promise, asked.scores[0]), reverse=True)
    made = {
        **summarised(results),
        "failed": failed,
        "command": shlex.join(["metalearn", "select", *overrides]),
        "dataset": data.name,
        "digest": data.digest,
        "commit": commit(),
        "machine": machine.describe(config["device"]),
        "config": config,
    }
    write_atomic(folder / "selection.md", markdown(made))
    write_json(folder / FILE, made)
    return made


def _promise(score: str, result: Mapping[str, Any]) -> tuple[float, float]:
    """By what a candidate reached, where that is known, else by the first score."""
    value = result["scores"][score]["value"]
    first = next(iter(result["reached"].values()), {"accuracy": 0.0})
    return first["accuracy"], -math.inf if value is None else value


def _splits(asked: SelectionPlan) -> dict[str, int]:
    """The splits that are looked at, and the seeds of their samples."""
    config = asked.config
    found = {config["sample"]["split"]: config["seed"]}
    if config["accuracy"]:
        found[config["evaluation"]["split"]] = config["evaluation"]["seed"]
    return found


def _file_name(name: str) -> str:
    if name.isidentifier():
        return name
    return f"{Path(name).name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _measured(
    asked: SelectionPlan,
    name: str,
    named: Named,
    samples: Mapping[str, ImageDataset | TensorDataset],
    say: Any,
) -> dict[str, Any]:
    config, shape = asked.config, asked.config["episodes"]
    split, data = config["sample"]["split"], samples[config["sample"]["split"]]
    candidate = _candidate(config, named, data, say)
    found = look(candidate, data, split)
    ordered = [score for score in asked.scores if score != NEAREST_CENTROID]
    scores = scored(found, ordered)
    if lost := [score for score, row in scores.items() if row["value"] is None]:
        say(f"  no {' nor '.join(lost)}: these weights tell no classes that they were trained on")
    shot = {"ways": shape["ways"], "shots": shape["shots"][-1], "queries": shape["queries"]}
    asks = config["evaluation"]
    if NEAREST_CENTROID in asked.scores:
        of = accuracies(found, data, split, NEAREST_CENTROID, shot, asks["episodes"], asks["seed"])
        scores[NEAREST_CENTROID] = {"value": of["accuracy"], **of}
    reached = {}
    if config["accuracy"]:
        there = asks["split"]
        seen = found if there == split else look(candidate, samples[there], there)
        for how in REACHED:
            for shots in shape["shots"]:
                reached[f"{how} {shots}-shot"] = accuracies(
                    seen, samples[there], there, how, {**shot, "shots": shots},
                    asks["episodes"], asks["seed"],
                )  # fmt: skip
    return {
        "candidate": name,
        "backbone": named.backbone,
        "images": named.images,
        "norm_policy": describe(candidate.net.module),
        "features": found.features.shape[1],
        "examples": len(found.labels),
        "classes": len(data.sizes[split]),
        "source_classes": None if found.probabilities is None else found.probabilities.shape[1],
        "seconds": found.seconds,
        "scores": scores,
        "reached": reached,
    }


def _candidate(
    config: Mapping[str, Any], named: Named, data: ImageDataset | TensorDataset, say: Any
) -> Candidate:
    """The network, with its own head where that tells what it was trained on."""
    transform = ImageTransform(**named.images)
    images = isinstance(data, ImageDataset)
    shape = transform.shape(data.image_shape) if images else data.example_shape
    headed, path = named.headed(), None
    module, report = None, None
    if headed is not None:
        try:
            module, report = build_module(headed[0], shape, config["seed"], named.weights)
            path = head_name(module)
        except UsageError:  # what looked like a head is another layer
            module = None
        if report is None or not report.head.endswith("too"):
            module, path = None, None
    if module is None:
        module, report = build_module(named.backbone, shape, config["seed"], named.weights)
    check_texts(module, data)
    say(f"  {report}" if report else "  random weights")
    if not inductive(module):
        raise UsageError(
            f"its norm is {describe(module)}, so that single images have no features; use "
            "norm=frozen, group or none"
        )
    net, device = pure(module), torch_device(config["device"])
    weights = {n: t.to(device) for n, t in {**net.params, **net.buffers}.items()}
    return Candidate(net, weights, transform, path)
