"""What the end of pre-training leaves behind: the weights, what they are worth, how to use them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save

from metalearn.backbones.norms import describe
from metalearn.commands.config import conf_folder
from metalearn.commands.episodes import preparation
from metalearn.episodes import Manifest
from metalearn.evaluation.plots import plot_pretraining
from metalearn.evaluation.report import write_episode_file, write_json
from metalearn.evaluation.statistics import mean_interval
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import peak_memory_bytes
from metalearn.tracking import Tracker, read_records
from metalearn.training.classification import restore
from metalearn.training.folder import config_hash
from metalearn.training.held_out_split import SPLIT, Part
from metalearn.training.supervised import PretrainState, Supervision
from metalearn.training.validation import classified, few_shot

WEIGHTS = "backbone.safetensors"
BATCH_NORMS = ("transductive", "support", "running", "frozen")
# Of one use, or of the data.
_NOT_REPEATED = ("ways", "outputs", "channels", "size", "norm", "weights", "sha256", "match")


def write_result(
    config: Mapping[str, Any],
    what: Supervision,
    state: PretrainState,
    folder: Path,
    tracker: Tracker,
) -> dict[str, Any]:
    """Measure the selected weights and write all that a run leaves behind; returns the result."""
    network = state.kept
    restore(network, state.best)
    dataset, division = what.images.pictures.dataset, what.division
    episodes = config["evaluation"]["episodes"]
    by_shot = few_shot(what.forward, network, what.few_shot, "test", episodes)
    novel = []
    for source, values in zip(what.few_shot, by_shot, strict=True):
        name = f"test {source.ways}-way {source.shots}-shot"
        listed = {"index": list(range(episodes)), "accuracy": values.tolist()}
        tracker.episodes(state.step, name, listed)
        measured = mean_interval(values)
        novel.append(
            {
                "ways": source.ways,
                "shots": source.shots,
                "queries": source.queries,
                "episodes": episodes,
                "accuracy": measured.mean,
                "accuracy_half_width": measured.half_width,
                "manifest_hash": Manifest(source, "test", episodes).hash,
            }
        )
    parts = {
        "": division.test,
        "val_": division.val,
        "train_": _some(division.train, config["evaluation"]["train_images"]),
    }
    known: dict[str, Any] = {}
    for prefix, part in parts.items():
        if len(part):
            interval = mean_interval(classified(what.forward, network, part)[0])
            known[f"{prefix}accuracy"] = interval.mean
            known[f"{prefix}accuracy_half_width"] = interval.half_width
            known[f"{prefix}images"] = interval.count
    digest = _save(config, what, state, folder / WEIGHTS, known.get("accuracy"))
    device = what.device
    result: dict[str, Any] = {
        **known,
        "few_shot": novel,
        "select": what.settings.select,
        "steps": state.step,
        "epochs": state.step / what.images.epoch,
        "selected_step": state.best_step,
        "validation_score": state.best_score,
        "classes": dataset.class_count(SPLIT),
        "norm_policy": describe(network.eval()),
        "backbone": config["backbone"].get("name") or _last(config["backbone"]),
        "dataset": _last(config["dataset"]),
        "precision": what.precision,
        "seed": config["seed"],
        "seconds": state.seconds,
        "images_per_second": state.step * what.settings.batch_size / state.seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "config_hash": config_hash(config),
        "commit": state.commit,
        "weights_sha256": digest,
        "weights": str(folder / WEIGHTS),
        "command": command_line(config, folder),
    }
    if by_shot:
        names = [f"accuracy_{source.shots}_shot" for source in what.few_shot]
        rows = (dict(zip(names, map(float, row), strict=True)) for row in np.stack(by_shot, 1))
        write_episode_file(
            folder / "episodes.csv", ({"index": i, **row} for i, row in enumerate(rows))
        )
    plot_pretraining(list(read_records(folder / "metrics.jsonl")), folder / "learning_curve.png")
    write_json(folder / "result.json", result)
    tracker.summary(result)
    return result


def _some(part: Part, count: int | None) -> Part:
    """`count` of the images, spread evenly over all."""
    if count is None or count >= len(part):
        return part
    return part.at(np.arange(count) * len(part) // count)


def _save(
    config: Mapping[str, Any],
    what: Supervision,
    state: PretrainState,
    path: Path,
    accuracy: float | None,
) -> str:
    """Write the selected weights with what is known of them; returns the file's sha256."""
    dataset = what.images.pictures.dataset
    channels, height, width = preparation(config).shape(dataset.image_shape)
    given = config.get("images") or {}
    told = {
        "images": {
            "size": height if height == width else None,
            "channels": channels,
            "mean": given.get("mean"),
            "std": given.get("std"),
        },
        "backbone": config["backbone"],
        "dataset": dataset.name,
        "classes": dataset.class_count(SPLIT),
        "class_names": dataset.splits[SPLIT].names(dataset.store),
        "steps": state.best_step,
        "accuracy": accuracy,
    }
    tensors = {
        name: t.cpu().contiguous()
        for name, t in state.best.items()
        if not name.endswith("num_batches_tracked")
    }
    data = save(tensors, {"metalearn": json.dumps(told, sort_keys=True)})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def command_line(config: Mapping[str, Any], folder: Path) -> str:
    """The `metalearn train` that starts from the weights in `folder`."""
    data, backbone = config["dataset"], config["backbone"]
    own = {name: value for name, value in backbone.items() if name not in _NOT_REPEATED}
    words = [*_chosen("dataset", data), *_chosen("backbone", own)]
    # As it was measured; whoever lets every batch use its own statistics leaves it out.
    frozen = ["backbone.norm=frozen"] if backbone.get("norm") in BATCH_NORMS else []
    return " ".join(["metalearn train", *words, *frozen, f"backbone.weights={folder}"])


def _chosen(group: str, node: Mapping[str, Any]) -> list[str]:
    """The overrides that compose `node`: the nearest of the choices of its config group, and where
    it differs from that."""
    files = {path.stem: path for path in sorted((conf_folder() / group).glob("[!_]*.yaml"))}
    values = {name: _own(path) for name, path in files.items()}
    fitting = {n: v for n, v in values.items() if v.get("_target_") == node.get("_target_")}
    if not fitting:
        return []

    def differing(name: str) -> list[str]:
        own = fitting[name]
        return [n for n, v in node.items() if own.get(n) != v]

    name = min(fitting, key=lambda name: len(differing(name)))
    changed = [f"{group}.{n}={_written(node[n])}" for n in differing(name)]
    return [f"{group}={name}", *changed]


def _own(path: Path) -> dict[str, Any]:
    """What a file of a config group sets, with the files of the group that it builds on."""
    node = yaml.safe_load(path.read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for base in node.pop("defaults", []):
        if isinstance(base, str) and base != "_self_" and "@" not in base:
            values |= _own(path.with_name(f"{base}.yaml"))
    return values | node


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":")).replace('"', "")


def _last(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]
