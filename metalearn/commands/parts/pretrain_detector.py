"""`metalearn pretrain task=detection`: a detector of the base classes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from metalearn.algorithms.detection import Detection
from metalearn.commands.building.arguments import check_choice, factory, make
from metalearn.commands.building.episodes import Data, read_data
from metalearn.commands.building.network import check_backbone, with_weights
from metalearn.commands.building.task_choices import task_choices
from metalearn.commands.parts.pretrain_network import PRECISIONS, network, optimizer_of
from metalearn.data import ImageDataset
from metalearn.engine.ranks import Ranks
from metalearn.episodes import DenseEpisodes, FewShotEpisodes, ImageTransform
from metalearn.errors import UsageError
from metalearn.evaluation.average_precision import check_torchmetrics
from metalearn.runtime.device import torch_device
from metalearn.training.base_detector import BaseDetector
from metalearn.training.base_pictures import BasePictures
from metalearn.training.classification import groups, torch_norms
from metalearn.training.held_out_split import SPLIT, check_shares, hold_out
from metalearn.training.settings import PretrainingSettings

_OF_CLASSES = ("label_smoothing", "mixup", "cutmix", "rotation", "ema")


def check_detector(config: Mapping[str, Any]) -> Data:
    """Every check that needs no data. Raises UsageError."""
    if config["task"] != "detection":
        raise UsageError(f"pretrain has no task={config['task']}; use detection, or classification")
    check_torchmetrics()
    training = config["training"]
    asked = [name for name in _OF_CLASSES if training[name]]
    asked = [f"training.{name}" for name in asked]
    asked += ["distillation.teacher"] if config["distillation"]["teacher"] else []
    asked += ["manifold_mixup.alpha"] if config["manifold_mixup"]["alpha"] else []
    asked += ["augmentation"] if (config.get("augmentation") or {}).get("query") else []
    if asked:
        raise UsageError(f"{asked[0]} is not for task=detection; leave it out")
    check_choice("precision", config["precision"], PRECISIONS)
    check_shares(config["held_out"]["val"], config["held_out"]["test"])
    check_backbone(config["backbone"])
    return read_data(config)


def build_detector(config: Mapping[str, Any]) -> tuple[dict[str, Any], BaseDetector]:
    """The stage that a configuration names, and the configuration with what its starting weights
    say of themselves. Raises UsageError, or DataError where a data set is missing or damaged."""
    device = torch_device(config["device"])
    data = check_detector(config)
    make_optimizer, schedule = factory(config["optimizer"], "optimizer"), config["schedule"]
    choices = task_choices({**config, "adaptation": None}, (), missing_classes=False)
    settings = PretrainingSettings(**config["training"])
    if Ranks.joined():
        raise UsageError("pretrain task=detection runs in one process; leave torchrun out")
    config, weights = with_weights(config)
    data = replace(data, config=config, transform=ImageTransform(**(config.get("images") or {})))
    dataset, loss = data.dataset, choices.loss
    if not isinstance(dataset, ImageDataset) or not isinstance(loss, Detection):
        raise UsageError("pretrain task=detection takes a data set with boxes and loss=detection")
    DenseEpisodes(FewShotEpisodes(dataset, 1, 1, 1), "detection")  # refuses others
    split = hold_out(dataset, **config["held_out"])
    given = split.train, settings.batch_size, data.transform, config["seed"]
    pictures = BasePictures(dataset, *given)
    shape, classes = data.transform.shape(dataset.image_shape), dataset.class_count(SPLIT)
    body, report = network(config, shape, classes, weights)
    choices = replace(choices, outputs=classes)
    module, _ = choices.network(body, torch.zeros(2, *shape))
    choices.check_answers(module, torch.zeros(2, *shape))
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    module = torch_norms(module).to(device, memory_format=layout)  # type: ignore[call-overload]
    learned = groups(module, settings.decay_norms)
    stage = BaseDetector(
        pictures,
        split,
        loss,
        make(schedule, "schedule"),
        settings,
        device,
        module,
        optimizer_of(make_optimizer, learned),
        report,
        config["precision"],
    )
    return config, stage
