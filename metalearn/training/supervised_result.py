"""What the end of pre-training leaves behind: the weights, and what they are worth."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from metalearn.episodes import FewShotEpisodes, Manifest
from metalearn.evaluation.report import write_episode_file, write_json
from metalearn.evaluation.statistics import mean_interval
from metalearn.runtime.files import write_atomic
from metalearn.tracking import read_records
from metalearn.training.base_images import ImageReader
from metalearn.training.held_out_split import SPLIT, Subset
from metalearn.types import Params

WEIGHTS = "backbone.safetensors"


def spread(subset: Subset, count: int | None) -> Subset:
    """`count` of the images, spread evenly over all; None for all."""
    if count is None or count >= len(subset):
        return subset
    return subset.at(np.arange(count) * len(subset) // count)


def novel_classes(
    sources: Sequence[FewShotEpisodes], by_shot: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Mean and interval on the test episodes of each of `sources`, of their accuracies
    `[episodes]`."""
    rows = []
    for source, values in zip(sources, by_shot, strict=True):
        mean, half, count = mean_interval(values)
        row = {name: getattr(source, name) for name in ("ways", "shots", "queries")}
        row |= {"episodes": count, "accuracy": mean, "accuracy_half_width": half}
        rows.append({**row, "manifest_hash": Manifest(source, "test", count).hash})
    return rows


def save_backbone(
    config: Mapping[str, Any],
    reader: ImageReader,
    weights: Params,
    step: int,
    accuracy: float | None,
    path: Path,
) -> str:
    """Write `weights`, those of `step`, with what is known of them; returns the file's sha256.

    accuracy: on held-out images of the base classes, None where there are none.
    """
    dataset = reader.dataset
    channels, height, width = reader.transform.shape(dataset.image_shape)
    images = {"size": height if height == width else None, "channels": channels}
    images |= {name: (config.get("images") or {}).get(name) for name in ("mean", "std")}
    told = {
        "images": images,
        "backbone": config["backbone"],
        "dataset": dataset.name,
        "classes": dataset.class_count(SPLIT),
        "class_names": dataset.splits[SPLIT].names(dataset.store),
        "steps": step,
        "accuracy": accuracy,
    }
    kept = [name for name in weights if not name.endswith("num_batches_tracked")]
    tensors = {name: weights[name].cpu().contiguous() for name in kept}
    data = save(tensors, {"metalearn": json.dumps(told, sort_keys=True)})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def write_pretraining(
    result: Mapping[str, Any],
    sources: Sequence[FewShotEpisodes],
    by_shot: Sequence[np.ndarray],
    folder: Path,
    plotted: bool = True,
) -> None:
    """Write `episodes.csv`, the plot of the training where it is `plotted` and, last,
    `result.json`."""
    if by_shot:
        names = [f"accuracy_{source.shots}_shot" for source in sources]
        rows = (dict(zip(names, map(float, row), strict=True)) for row in np.stack(by_shot, 1))
        write_episode_file(
            folder / "episodes.csv", ({"index": i, **row} for i, row in enumerate(rows))
        )
    if plotted:
        from metalearn.evaluation.plots import plot_pretraining  # imports matplotlib

        with contextlib.suppress(FileNotFoundError, ValueError):  # records lost, as was told
            records = list(read_records(folder / "metrics.jsonl"))
            plot_pretraining(records, folder / "learning_curve.png")
    write_json(folder / "result.json", result)
