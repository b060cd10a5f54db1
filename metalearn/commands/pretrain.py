"""What `metalearn pretrain` does: a backbone trained by supervision on the base classes."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import Optimizer

from metalearn.backbones.weights import Report
from metalearn.commands.arguments import check_choice, check_node, check_numbers, make
from metalearn.commands.backbone import build_module, check_backbone, settled
from metalearn.commands.episodes import build_dataset, changes, preparation
from metalearn.commands.train import in_folder, warn_of_emulation
from metalearn.data import ImageDataset
from metalearn.episodes import FewShotEpisodes
from metalearn.errors import UsageError
from metalearn.evaluation.report import pretraining_table
from metalearn.runtime.device import torch_device
from metalearn.runtime.memory import keep_freed_memory, reset_peak_memory
from metalearn.tracking import JsonLines, Progress, RunInfo, Tracker, WandB
from metalearn.training.base_images import BaseImages, Pictures
from metalearn.training.classification import groups, head_of, state, torch_norms
from metalearn.training.episodic import at_sigterm
from metalearn.training.folder import check_writable, commit
from metalearn.training.held_out_split import check_shares, divided
from metalearn.training.mixing import Mixing
from metalearn.training.settings import PretrainingSettings
from metalearn.training.supervised import (
    PretrainState,
    Supervision,
    averaging,
    pretrain,
    resume,
)
from metalearn.training.supervised_result import BATCH_NORMS, write_result

PRECISIONS = ("fp32", "tf32", "bf16")
SELECTIONS = ("few_shot", "accuracy", "last")


@dataclass(frozen=True)
class Built:
    """Everything that a configuration names; config: with what its weights say of themselves."""

    config: dict[str, Any]
    what: Supervision
    state: PretrainState
    weights: Report | None


def run(config: dict[str, Any], console: Console) -> float | None:
    """One job of pre-training from its configuration, in its folder; returns what `train` does.

    Raises UsageError, or DataError, before the folder is made.
    """
    check_writable(Path(config["run_dir"]))
    built = build(config)
    return in_folder(
        built.config, console, lambda folder: train(built, folder, console), pretraining_table
    )


def train(built: Built, folder: Path, console: Console) -> float | None:
    """Train, select by validation, measure; returns the best validation score.

    None where SIGTERM stopped the run; the same command goes on from there.
    """
    keep_freed_memory()
    config, what, now = built.config, built.what, built.state
    warn_of_emulation(what.precision, what.device, console)
    source = commit()
    reset_peak_memory(what.device)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    if built.weights is not None:
        say(str(built.weights))
    resumed = resume(now, folder, say)
    if resumed:
        if now.commit != source:
            say(f"this run began at commit {now.commit}, now {source}")
        say(f"resuming {folder} at step {now.step}")
    sinks = [JsonLines(), WandB(**config["tracker"]), Progress(console)]
    with Tracker(sinks) as tracker:
        info = RunInfo(
            name=folder.name,
            folder=folder,
            config=config,
            commit=source,
            seed=config["seed"],
            steps=what.steps,
            resume_step=now.step if resumed else None,
            wandb_id=now.wandb_id,
        )
        now.commit = source
        now.wandb_id = tracker.start(info).get("wandb_id", now.wandb_id)
        if not pretrain(what, now, folder, tracker):
            tracker.close("interrupted")
            say(
                f"stopped at step {now.step} of {what.steps} after a checkpoint; "
                "the same command goes on from there"
            )
            return None
        try:
            with at_sigterm(lambda: sys.exit(0)):
                result = write_result(config, what, now, folder, tracker)
        except SystemExit:
            console.print("stopped during the test; the same command goes on from there")
            raise
    console.print(pretraining_table(result))
    say(f"run folder: {folder}")
    return now.best_score


def build(config: Mapping[str, Any]) -> Built:
    """Build a run. Raises UsageError, or DataError where a data set is missing or damaged."""
    device = torch_device(config["device"])
    _check(config)
    settings = PretrainingSettings(**config["training"])
    schedule = make(config["schedule"], "schedule")
    config = settled(config)
    dataset = build_dataset(config)
    if not isinstance(dataset, ImageDataset):
        raise UsageError(_REFUSED)
    few_shot = _few_shot(config, dataset)
    division = divided(dataset, **config["division"])
    how, augmentation = preparation(config), changes(config)["query"]
    shape = how.shape(dataset.image_shape)
    if augmentation is not None:
        augmentation.check(dataset.image_shape)
    pictures = Pictures(dataset, how, device if dataset.fits(device) else None)
    mixing = Mixing(settings.mixup, settings.cutmix)
    images = BaseImages(
        pictures, division.train, settings.batch_size, config["seed"], augmentation, mixing
    )
    module, weights = network(config, shape, dataset.class_count("train"))
    turns = _turns(module, settings.rotation, shape, config["seed"])
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    module = module.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = _optimizer(config, nn.ModuleList([module, *([turns.to(device)] if turns else [])]))
    averaged = averaging(module, settings.ema)
    what = Supervision(
        images,
        division,
        few_shot,
        config["evaluation"]["validation_episodes"],
        schedule,
        settings,
        device,
        config["precision"],
    )
    return Built(
        config, what, PretrainState(module, turns, optimizer, averaged, state(module)), weights
    )


_REFUSED = "pretrain takes images of one data set with classes; see metalearn list dataset"


def _check(config: Mapping[str, Any]) -> None:
    """Every check that needs no data, so that no data is decoded before a mistake is told."""
    training, division = config["training"], config["division"]
    check_choice("precision", config["precision"], PRECISIONS)
    check_choice("resume", config["resume"], ("auto", "never"))
    check_choice("tracker.mode", config["tracker"]["mode"], ("online", "offline", "disabled"))
    check_choice("training.select", training["select"], SELECTIONS)
    check_numbers(config)
    check_shares(division["val"], division["test"])
    averaging(nn.Module(), training["ema"])
    if not training["label_smoothing"] < 1:
        raise UsageError(f"training.label_smoothing={training['label_smoothing']} must be below 1")
    shots = config["episodes"]["shots"]
    if any(number < 1 for number in shots):
        raise UsageError(f"episodes.shots={shots} must be 1 or more each")
    if training["select"] == "few_shot" and not shots:
        raise UsageError("training.select=few_shot needs episodes.shots; use accuracy or last")
    if training["select"] == "accuracy" and not division["val"]:
        raise UsageError(
            "training.select=accuracy needs division.val above 0; use few_shot or last"
        )
    changes(config)
    preparation(config)
    check_node(config["dataset"], "dataset")
    if "sets" in config["dataset"]:
        raise UsageError(_REFUSED)
    check_backbone(config["backbone"])
    check_node(config["optimizer"], "optimizer")
    check_node(config["schedule"], "schedule")


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


def network(
    config: Mapping[str, Any], shape: tuple[int, int, int], classes: int
) -> tuple[nn.Module, Report | None]:
    """The backbone of a configuration with a head for so many classes, and torch's own norms; and
    what became of the weights that it starts from. Raises UsageError."""
    if config["outputs"] not in (None, classes):
        raise UsageError(
            f"outputs={config['outputs']}, but there are {classes} base classes; use outputs=null"
        )
    node = dict(config["backbone"])
    for name in ("ways", "outputs"):
        if name in node and node[name] is None:
            node[name] = classes
    # With averages, whatever the policy of who uses the weights later.
    if node.get("norm") in BATCH_NORMS:
        node["norm"] = "frozen"
    module, weights = build_module(node, shape, config["seed"])
    if (outputs := head_of(module).out_features) != classes:
        raise UsageError(f"the backbone has {outputs} outputs, not {classes}, one a base class")
    return torch_norms(module), weights


def _turns(
    module: nn.Module, rotation: float, shape: tuple[int, int, int], seed: int
) -> nn.Linear | None:
    if not rotation:
        return None
    if shape[1] != shape[2]:
        raise UsageError("training.rotation needs square images; use rotation=0 or images.size")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(head_of(module).in_features, 4)


def _optimizer(config: Mapping[str, Any], learned: nn.Module) -> Optimizer:
    make_one = make({**config["optimizer"], "_partial_": True}, "optimizer")
    try:
        optimizer = make_one(groups(learned, config["training"]["decay_norms"]))
    except ValueError as error:  # torch's optimizers check their numbers
        raise UsageError(f"optimizer: {error}; correct optimizer") from None
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
