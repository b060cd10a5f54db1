"""`metalearn pretrain`: a backbone trained by supervision on the base classes; `-m` sweeps."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from metalearn.backbones.heads import head_name
from metalearn.commands.building import hydra_runs
from metalearn.commands.building.arguments import check_choice, factory, make, option
from metalearn.commands.building.config import conf_files
from metalearn.commands.building.episodes import Data, read_data
from metalearn.commands.building.methods import read
from metalearn.commands.building.network import check_backbone, with_weights
from metalearn.commands.parts.pretrain_detector import build_detector, check_detector
from metalearn.commands.parts.pretrain_network import (
    BATCH_NORMS,
    PRECISIONS,
    check_distillation,
    find_teacher,
    make_rotation_head,
    network,
    optimizer_of,
)
from metalearn.data import ImageDataset
from metalearn.engine.ranks import Ranks
from metalearn.episodes import FewShotEpisodes, ImageTransform
from metalearn.errors import UsageError
from metalearn.runtime.device import torch_device
from metalearn.training import run as shell
from metalearn.training.base_detector import BaseDetector
from metalearn.training.base_images import BaseImages, ImageReader
from metalearn.training.classification import averaging, groups
from metalearn.training.held_out_split import check_shares, hold_out
from metalearn.training.manifold import mixed_layers
from metalearn.training.mixing import Mixing
from metalearn.training.settings import PretrainingSettings
from metalearn.training.supervised import Supervised

SELECTIONS = ("few_shot", "accuracy", "last")
_REFUSED = "pretrain takes images of one data set with classes; see metalearn list dataset"
# Of one use, or of the data.
_NOT_REPEATED = (
    *("ways", "outputs", "channels", "size", "norm"),
    *("weights", "sha256", "copy", "rename", "match"),
)


def main(arguments: list[str], console: Console) -> None:
    """`metalearn pretrain [overrides] [options of Hydra]`."""
    hydra_runs.start("pretrain", run, arguments, console)


def run(config: dict[str, Any], console: Console, watch: shell.Watch | None = None) -> float | None:
    """One run from its configuration, in its folder; returns and raises what `train` does."""
    return shell.run(config, build, console, watch)


def build(config: Mapping[str, Any]) -> tuple[dict[str, Any], Supervised | BaseDetector]:
    """The stage that a configuration names, and the configuration with what its starting weights
    say of themselves. Raises UsageError, or DataError where a data set is missing or damaged."""
    if config.get("task", "classification") != "classification":
        return build_detector(config)
    device = torch_device(config["device"])
    data = _checked(config)
    make_optimizer = factory(config["optimizer"], "optimizer")
    schedule = make(config["schedule"], "schedule")
    settings = PretrainingSettings(**config["training"])
    config, weights = with_weights(config)
    data = replace(data, config=config, transform=ImageTransform(**(config.get("images") or {})))
    dataset = data.dataset
    if not isinstance(dataset, ImageDataset):
        raise UsageError(_REFUSED)
    few_shot = _few_shot(config, dataset)
    split = hold_out(dataset, **config["held_out"])
    augmentation = data.augmentation["query"]
    shape = data.transform.shape(dataset.image_shape)
    if augmentation is not None:
        augmentation.check(dataset.image_shape)
    reader = ImageReader(dataset, data.transform, data.held_on)
    mixing = Mixing(settings.mixup, settings.cutmix, config["manifold_mixup"]["alpha"])
    given = settings.batch_size, config["seed"], augmentation, mixing, Ranks.joined()
    images = BaseImages(reader, split.train, *given)
    module, report = network(config, shape, dataset.class_count("train"), weights)
    rotation_head = make_rotation_head(module, settings.rotation, shape, config["seed"])
    layers = None
    if mixing.manifold:
        named = config["manifold_mixup"]["layers"]
        layers = mixed_layers(module, head_name(module), torch.zeros(3, *shape), named)
    config, teacher = find_teacher(config, dataset, shape)
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    module = module.to(device, memory_format=layout)  # type: ignore[call-overload]
    if teacher is not None:
        teacher.module.to(device, memory_format=layout)  # type: ignore[call-overload]
    parts = [module, *([rotation_head.to(device)] if rotation_head else [])]
    learned = groups(nn.ModuleList(parts), settings.decay_norms)
    stage = Supervised(
        images,
        split,
        few_shot,
        config["evaluation"]["validation_episodes"],
        schedule,
        settings,
        device,
        module,
        rotation_head,
        optimizer_of(make_optimizer, learned),
        averaging(module, settings.ema),
        config["precision"],
        functools.partial(command_line, config),
        report,
        teacher,
        layers or (),
    )
    return config, stage


def check(config: Mapping[str, Any]) -> None:
    """Raise UsageError, or DataError, for every mistake that shows without data or a device."""
    if config.get("task", "classification") != "classification":
        check_detector(config)
    else:
        _checked(config)


def _checked(config: Mapping[str, Any]) -> Data:
    """Every check that needs no data, so that no data is decoded before a mistake is told."""
    training, held_out = config["training"], config["held_out"]
    for name, usual in (("head", "linear"), ("loss", "auto")):
        if (node := config.get(name)) and option(node) != usual:
            raise UsageError(f"{name}={option(node)} is for task=detection; leave it out")
    check_choice("precision", config["precision"], PRECISIONS)
    check_choice("training.select", training["select"], SELECTIONS)
    check_shares(held_out["val"], held_out["test"])
    averaging(nn.Module(), training["ema"])
    check_distillation(config["distillation"])
    if not training["label_smoothing"] < 1:
        raise UsageError(f"training.label_smoothing={training['label_smoothing']} must be below 1")
    shots = config["episodes"]["shots"]
    if any(number < 1 for number in shots):
        raise UsageError(f"episodes.shots={shots} must be 1 or more each")
    if training["select"] == "few_shot" and not shots:
        raise UsageError("training.select=few_shot needs episodes.shots; use accuracy or last")
    if training["select"] == "accuracy" and not held_out["val"]:
        need = "needs held_out.val above 0"
        raise UsageError(f"training.select=accuracy {need}; use few_shot or last")
    data = read_data(config)
    if "sets" in config["dataset"]:
        raise UsageError(_REFUSED)
    check_backbone(config["backbone"])
    return data


def _few_shot(config: Mapping[str, Any], dataset: ImageDataset) -> list[FewShotEpisodes]:
    episodes, seed = config["episodes"], config["evaluation"]["seed"]
    sources = [
        FewShotEpisodes(dataset, episodes["ways"], shots, episodes["queries"], seed)
        for shots in episodes["shots"]
    ]
    for source in sources:
        for split in ("val", "test"):
            source.check(split)
    return sources


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
    differing = {}
    for path in conf_files(group):
        own = read(path)
        if own.get("_target_") == node.get("_target_"):
            differing[path.stem] = [n for n, v in node.items() if own.get(n) != v]
    if not differing:
        return []
    name = min(differing, key=lambda name: len(differing[name]))
    return [f"{group}={name}", *(f"{group}.{n}={_written(node[n])}" for n in differing[name])]


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":")).replace('"', "")
