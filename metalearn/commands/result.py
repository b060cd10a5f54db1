"""What the end of a run or an evaluation leaves behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.backbones.norms import describe
from metalearn.commands.build import Built
from metalearn.episodes.source import describe_shape
from metalearn.evaluation.plots import plot_accuracy_by_step
from metalearn.evaluation.protocol import EvalReport
from metalearn.evaluation.report import write_episode_file, write_json
from metalearn.runtime.memory import peak_memory_bytes
from metalearn.training.folder import config_hash


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

    where = built.problem.device
    device = torch.cuda.get_device_name(where) if where.type == "cuda" else str(where)
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
        "sampling": _sampling(config),
        "algorithm": name("algorithm"),
        "gradient": name("gradient"),
        "backbone": name("backbone"),
        "starting_weights": config["backbone"].get("weights"),
        "adaptation": _unusual(config, "adaptation", "everything"),
        "head": _unusual(config, "head", "linear"),
        "loss_function": _unusual(config, "loss", "auto"),
        "dataset": _dataset(config, built.test.split),
        "seed": config["seed"],
        "config_hash": config_hash(config),
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_memory_bytes(built.problem.device),
        **extra,
    }
    write_episode_file(folder / "episodes.csv", _rows(report))
    task = describe_shape(built.test.source.shape)
    plot_accuracy_by_step(
        by_step,
        folder / f"{measure}_by_step.png",
        title=f"{name('algorithm')} on {name('dataset')}, {task}",
        label="query accuracy" if ways else "mean squared error",
        chance=1 / ways if ways and shots else None,
        percent=ways is not None,
    )
    write_json(folder / "result.json", result)
    return result


def _unusual(config: Mapping[str, Any], group: str, usual: str) -> str | None:
    """What was chosen from a group, with its values; None for what is usual."""
    node = dict(config.get(group) or {"_target_": usual})
    name = str(node.pop("_target_")).rpartition(".")[2]
    told = [f"{key} {value}" for key, value in node.items() if not key.startswith("_")]
    return None if name == usual else ", ".join([name, *told])


def _dataset(config: Mapping[str, Any], split: str) -> str:
    """The data set's name; of a mixture the sets that `split` draws from, of a folder which."""
    node = config["dataset"]
    name = str(node["_target_"]).rpartition(".")[2]
    if "sets" in node:
        shares = (node.get("proportions") or {}).get(split) or dict.fromkeys(node["sets"], 1)
        return f"{name} of {', '.join(part for part, share in shares.items() if share)}"
    return f"{name} {Path(node['root']).name}" if name == "folder" and node.get("root") else name


def _sampling(config: Mapping[str, Any]) -> str | None:
    """How classes and sizes of the episodes are drawn; None where uniformly."""
    node = config.get("sampling") or {}
    told = [str(node["sizes"]["_target_"]).rpartition(".")[2]] if node.get("sizes") else []
    told += ["within superclasses"] if node.get("within_superclass") else []
    return ", ".join(told) or None


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
