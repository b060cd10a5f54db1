"""Pre-training as a stage: supervised steps on base-class images, validation on held-out images
and on few-shot episodes, a test of both at the end."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from metalearn.backbones.norms import describe
from metalearn.backbones.weights import Report
from metalearn.engine.ranks import Ranks
from metalearn.episodes import FewShotEpisodes
from metalearn.errors import Diverged
from metalearn.evaluation.report import pretraining_table
from metalearn.evaluation.statistics import mean_interval
from metalearn.functional.precision import computing_in
from metalearn.tracking import Tracker
from metalearn.training.base_images import BaseImages
from metalearn.training.classification import loss_and_accuracy, restore, state
from metalearn.training.distillation import Teacher
from metalearn.training.held_out_split import SPLIT, HeldOutSplit
from metalearn.training.mixing import Labelled
from metalearn.training.rates import Schedule, check_finite, moved, pace, stepped
from metalearn.training.result import last_word, plotted, surroundings
from metalearn.training.settings import PretrainingSettings
from metalearn.training.shared_step import SharedStep
from metalearn.training.stage import (
    Pace,
    Position,
    Validation,
    tell,
    teller,
    trained,
    warn_of_emulation,
)
from metalearn.training.supervised_result import (
    WEIGHTS,
    novel_classes,
    save_backbone,
    spread,
    write_pretraining,
)
from metalearn.training.validation import Forward, classified, few_shot
from metalearn.types import Params


@dataclass
class Supervised:
    """What a network is pre-trained on, and measured by.

    module: the network, updated in place. rotation_head: tells by how many quarters an image was
    rotated; None without. averaged: the running average of the weights; None without. few_shot:
    one source for each number of shots. validation_episodes: of each of them. used_by: from the
    run folder to the command that starts from its weights. starting: what became of the weights
    that the network starts from. teacher: whose answers are learned too, None without. layers:
    those that manifold mixup chooses from. best: the tensors of the selected weights.
    """

    images: BaseImages
    split: HeldOutSplit
    few_shot: Sequence[FewShotEpisodes]
    validation_episodes: int
    schedule: Schedule
    settings: PretrainingSettings
    device: torch.device
    module: nn.Module
    rotation_head: nn.Module | None
    optimizer: Optimizer
    averaged: AveragedModel | None = None
    precision: str = "fp32"
    used_by: Callable[[Path], str] = str
    starting: Report | None = None
    teacher: Teacher | None = None
    layers: Sequence[str] = ()
    best: Params = field(init=False)
    unit = "images"

    def __post_init__(self) -> None:
        self._tell: Callable[[str], object] = print
        self._told = False
        self.best = state(self.module)

    @property
    def ranks(self) -> Ranks | None:
        """Those that share each batch."""
        return self.images.ranks

    @property
    def size(self) -> int:
        """Images in one batch."""
        return self.settings.batch_size

    @property
    def pace(self) -> Pace:
        """As the settings say, which count validations by epochs."""
        return pace(self.settings, self.images.epoch)

    @property
    def forward(self) -> Forward:
        """How images go through the network when it is measured."""
        return Forward(self.images.reader, self.device, self.settings.channels_last, self.ranks)

    @property
    def kept(self) -> nn.Module:
        """The network that is validated: the average where there is one."""
        return self.module if self.averaged is None else self.averaged.module

    def begin(self, folder: Path, console: Console) -> None:
        """Tell of the precision and the starting weights."""
        self._tell = teller(console)
        if self.ranks is None or self.ranks.first:
            warn_of_emulation(self.precision, self.device, self._tell)
            tell(self.starting, folder, self._tell)

    def batches(self, steps: range, workers: int) -> Generator[Labelled, None, None]:
        """The images of each step, augmented and mixed."""
        return self.images.batches(steps, workers)

    def step(self, number: int, batch: Labelled, tracker: Tracker) -> Mapping[str, Tensor | float]:
        """One step of the optimizer, and of the average."""
        settings, optimizer = self.settings, self.optimizer
        batch = batch._replace(
            x=self.forward.laid_out(batch.x),
            y=batch.y.to(self.device),
            other=batch.other.to(self.device),
            partner=None if batch.partner is None else batch.partner.to(self.device),
        )
        self.module.train()
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        rotation, more = (self.rotation_head, settings.rotation), (self.teacher, self.layers)
        shared = None
        if self.ranks:
            shared = SharedStep(self.ranks, self.module, self.images.seed, number)
        share = len(batch.x) / self.size
        with (
            computing_in(self.precision, self.device),
            shared.entered(self.device) if shared else nullcontext(),
        ):
            with narrow:
                loss, accuracy = loss_and_accuracy(
                    self.module, batch, settings.label_smoothing, *rotation, *more
                )
            (loss * share).backward()
        if shared:
            loss, accuracy = shared.average(moved(optimizer), [loss, accuracy], share)
            if shared.drew and not self._told:
                self._told = True
                self._tell(
                    "what the network draws at random, as by dropout, is another draw with "
                    "another number of ranks"
                )
        factor = self.schedule(number - 1, self.pace.steps, self.images.epoch)
        told = stepped(optimizer, factor, settings.clip_norm)
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        return {"loss": loss.detach(), "accuracy": accuracy, **told}

    def check(self, values: Mapping[str, float], number: int) -> None:
        """Raise Diverged where the loss or its gradient is not finite."""
        check_finite(values, number)

    def validate(self, number: int, tracker: Tracker) -> Validation:
        """Accuracy on the held-out images and on episodes of the validation classes."""
        record: dict[str, float] = {}
        score = math.nan
        if len(self.split.val):
            right, losses = classified(self.forward, self.kept, self.split.val)
            score, half, _ = mean_interval(right)
            record = {"held_out_accuracy": score, "held_out_half_width": half}
            record["held_out_loss"] = float(losses.mean())
            if not math.isfinite(record["held_out_loss"]):
                raise Diverged(
                    f"the loss on the held-out images is not finite at step {number}; lower "
                    "optimizer.lr, or set training.clip_norm (earlier checkpoints are kept)"
                )
        count = self.validation_episodes
        measured = few_shot(self.forward, self.kept, self.few_shot, "val", count)
        for source, values in zip(self.few_shot, measured, strict=True):
            episodes = {"index": list(range(count)), "accuracy": values.tolist()}
            tracker.episodes(number, f"val {source.ways}-way {source.shots}-shot", episodes)
        if self.settings.select == "few_shot":
            score = float(np.mean([values.mean() for values in measured]))
        return Validation(score, record, last=self.settings.select == "last")

    def select(self) -> None:
        """Keep a copy of the weights."""
        self.best = state(self.kept)

    def dump(self) -> dict[str, Any]:
        """The networks, the selected weights and the optimizer."""
        networks = {name: part.state_dict() for name, part in self._networks().items()}
        return {**networks, "best": self.best, "optimizer": self.optimizer.state_dict()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned."""
        saved = {_RENAMED.get(name, name): value for name, value in saved.items()}
        for name, part in self._networks().items():
            restore(part, saved[name])
        self.best = {name: saved["best"][name].to(t.device) for name, t in self.best.items()}
        self.optimizer.load_state_dict(saved["optimizer"])
        for weight, moments in self.optimizer.state.items():
            for name, t in moments.items():
                # Where memory is laid out otherwise, the same sum may be rounded otherwise.
                if isinstance(t, Tensor) and t.shape == weight.shape:
                    moments[name] = torch.empty_like(weight).copy_(t)

    def _networks(self) -> dict[str, nn.Module]:
        names = ("module", "rotation_head", "averaged")
        parts = {name: getattr(self, name) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    def finish(
        self, config: Mapping[str, Any], position: Position, folder: Path, tracker: Tracker
    ) -> dict[str, Any]:
        """Measure the selected weights; write them, the result, every episode and the plot."""
        network, asked = self.kept, config["evaluation"]
        restore(network, self.best)
        by_shot = few_shot(self.forward, network, self.few_shot, "test", asked["episodes"])
        for source, values in zip(self.few_shot, by_shot, strict=True):
            listed = {"index": list(range(len(values))), "accuracy": values.tolist()}
            tracker.episodes(position.step, f"test {source.ways}-way {source.shots}-shot", listed)
        known: dict[str, Any] = {}
        subsets = {"": self.split.test, "val_": self.split.val}
        subsets["train_"] = spread(self.split.train, asked["train_images"])
        for prefix, subset in subsets.items():
            if len(subset):
                interval = mean_interval(classified(self.forward, network, subset)[0])
                known[f"{prefix}accuracy"] = interval.mean
                known[f"{prefix}accuracy_half_width"] = interval.half_width
                known[f"{prefix}images"] = interval.count
        if self.ranks and not self.ranks.first:
            return {}
        path, told = folder / WEIGHTS, (position.best_step, known.get("accuracy"))
        digest = save_backbone(config, self.images.reader, self.best, *told, path)
        result: dict[str, Any] = {
            **known,
            "few_shot": novel_classes(self.few_shot, by_shot),
            "select": self.settings.select,
            "epochs": position.step / self.images.epoch,
            "classes": self.images.reader.dataset.class_count(SPLIT),
            "norm_policy": describe(network.eval()),
            "backbone": config["backbone"].get("name") or last_word(config["backbone"]["_target_"]),
            "dataset": last_word(config["dataset"]["_target_"]),
            "precision": self.precision,
            **trained(self, position),
            **surroundings(config, self.device),
            "weights_sha256": digest,
            "teacher_sha256": self.teacher.sha256 if self.teacher else None,
            "weights": str(path),
            "command": self.used_by(folder),
        }
        write_pretraining(result, self.few_shot, by_shot, folder, plotted(config))
        return result

    def table(self, result: Mapping[str, Any]) -> Table:
        """A result for people."""
        return pretraining_table(result)


_RENAMED = {"turns": "rotation_head"}  # in the checkpoints of earlier versions
