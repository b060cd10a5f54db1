"""What the end of a meta-training or an evaluation leaves behind."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.backbones.norms import describe
from metalearn.episodes import Manifest
from metalearn.episodes.source import describe_shape
from metalearn.evaluation.protocol import EvalReport
from metalearn.evaluation.report import LABELS, write_episode_file, write_json
from metalearn.evaluation.statistics import SHARES
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.memory import peak_memory_bytes
from metalearn.tracking import read_records
from metalearn.training.folder import config_hash
from metalearn.training.stage import Position


def surroundings(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a run was, and where: seed, hash of its configuration, device, threads, memory."""
    return {
        "seed": config["seed"],
        "config_hash": config_hash(config),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def repeating(config: Mapping[str, Any], position: Position, batching: Any) -> str | None:
    """The overrides with which the command takes just the steps of this run, where a clock ended
    it: no clock says how many. None where none did. batching: as it was chosen."""
    training = config["training"]
    seconds, most = training.get("seconds"), training["steps"]
    if seconds is None or position.step >= most or position.seconds < seconds:
        return None
    words = [f"training.steps={position.step}", "training.seconds=null"]
    # A schedule over as many steps stays as long as it was.
    schedule = config["outer"].get("schedule") or {}
    words += [f"outer.schedule.{key}={most}" for key, value in schedule.items() if value == most]
    return " ".join([*words, *([f"batching={batching}"] if config["batching"] == "auto" else [])])


def write_result(
    config: Mapping[str, Any],
    algo: MetaAlgorithm,
    test: Manifest,
    device: torch.device,
    report: EvalReport,
    folder: Path,
    run: Path,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Write `result.json`, `episodes.csv` and, unless `tracker.plots` is false, the learning curve
    of the training in `run` and the plot by inner step; returns the result.

    report: of `algo` on the episodes `test`. extra: more of the result.
    """
    measure, task = report.measure, config.get("task", "classification")
    ways, shots, queries = test.source.shape
    count = report.by_step[measure].shape[1]
    by_step = [report.interval(measure, step) for step in range(count)]

    def name(group: str) -> str:
        return last_word(config[group]["_target_"])

    final = report.interval(measure)
    result: dict[str, Any] = {
        measure: final.mean,
        f"{measure}_half_width": final.half_width,
        f"{measure}_by_step": [[step.mean, step.half_width] for step in by_step],
        "episodes": final.count,
        "not_finite_episodes": report.not_finite,
        "ways": ways,
        "shots": shots,
        "queries": queries,
        "norm_policy": describe(algo.net.module),
        "transductive": algo.transductive,
        "manifest_hash": report.manifest_hash,
        "dataset_hash": test.dataset_hash,
        "image_shape": test.images and list(test.images.image_shape),
        "split": test.split,
        "task": None if task == "classification" else task,
        "sampling": _sampling(config),
        "corruption": _corruption(config),
        "algorithm": name("algorithm"),
        "classifier": name("classifier") if config.get("classifier") else None,
        "gradient": name("gradient"),
        "backbone": config["backbone"].get("name") or name("backbone"),
        "starting_weights": config["backbone"].get("weights"),
        "starting_copy": config["backbone"].get("copy"),
        "adaptation": _unusual(config, "adaptation", "everything"),
        "head": _unusual(config, "head", "linear"),
        "loss_function": _unusual(config, "loss", "auto"),
        "dataset": _dataset(config, test.split),
        **surroundings(config, device),
        **extra,
    }
    for beside in ("fb_iou", "box_ap50", f"robust_{measure}"):
        if beside in report.by_step:
            found = report.interval(beside)
            result |= {beside: found.mean, f"{beside}_half_width": found.half_width}
    write_episode_file(folder / "episodes.csv", _rows(report))
    if plotted(config):
        from metalearn.evaluation import plots  # imports matplotlib

        with contextlib.suppress(FileNotFoundError, ValueError):  # records lost, as was told
            records = list(read_records(run / "metrics.jsonl"))
            plots.plot_learning_curve(records, folder / "learning_curve.png")
        shape = describe_shape(test.source.shape)
        plots.plot_accuracy_by_step(
            by_step,
            folder / f"{measure}_by_step.png",
            title=f"{name('algorithm')} on {name('dataset')}, {shape}",
            label="query accuracy" if measure == "accuracy" else LABELS[measure],
            chance=1 / ways if ways and shots and measure == "accuracy" else None,
            percent=measure in SHARES,
        )
    write_json(folder / "result.json", result)
    return result


def plotted(config: Mapping[str, Any]) -> bool:
    """Whether the run is drawn, as those from before there was a choice."""
    return config["tracker"].get("plots", True)


def last_word(target: str) -> str:
    """The name alone of a `_target_`."""
    return target.rpartition(".")[2]


def _unusual(config: Mapping[str, Any], group: str, usual: str) -> str | None:
    """What was chosen from a group, with its values; None for what is usual."""
    node = dict(config.get(group) or {"_target_": usual})
    name = last_word(node.pop("_target_"))
    told = [f"{key} {value}" for key, value in node.items() if not key.startswith("_")]
    return None if name == usual else ", ".join([name, *told])


def _dataset(config: Mapping[str, Any], split: str) -> str:
    """The data set's name; of a mixture the sets that `split` draws from, of a folder which."""
    node = config["dataset"]
    name = last_word(node["_target_"])
    if "sets" in node:
        shares = (node.get("proportions") or {}).get(split) or dict.fromkeys(node["sets"], 1)
        return f"{name} of {', '.join(part for part, share in shares.items() if share)}"
    return f"{name} {Path(node['root']).name}" if name == "folder" and node.get("root") else name


def _sampling(config: Mapping[str, Any]) -> str | None:
    """How classes and sizes of the episodes are drawn; None where uniformly."""
    node = config.get("sampling") or {}
    told = [last_word(node["sizes"]["_target_"])] if node.get("sizes") else []
    told += ["within superclasses"] if node.get("within_superclass") else []
    if node.get("queries") == "dirichlet":
        told.append(f"Dirichlet({node.get('concentration', 2.0):g}) queries")
    return ", ".join(told) or None


def _corruption(config: Mapping[str, Any]) -> str | None:
    """Of the images of the episodes; None where they are as they are."""
    how = config.get("corruption") or {}
    if how.get("name") is None:
        return None
    where = "support and queries" if how["on"] == "both" else "queries"
    return f"{how['name']}, severity {how['severity']}, of the {where}"


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
