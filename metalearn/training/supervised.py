"""The loop of pre-training: supervised steps, validation and selection by it, checkpoints."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from metalearn.episodes import FewShotEpisodes
from metalearn.errors import UsageError
from metalearn.evaluation.statistics import mean_interval
from metalearn.functional.precision import computing_in
from metalearn.runtime.memory import peak_memory_bytes
from metalearn.tracking import Tracker
from metalearn.training.base_images import BaseImages
from metalearn.training.checkpoint import (
    generator_states,
    latest_checkpoint,
    prune_checkpoints,
    restore_generators,
    save_checkpoint,
)
from metalearn.training.classification import loss_and_accuracy, restore, state
from metalearn.training.episodic import at_sigterm
from metalearn.training.held_out_split import Division
from metalearn.training.mixing import Labelled
from metalearn.training.rates import Schedule
from metalearn.training.settings import PretrainingSettings
from metalearn.training.validation import Forward, classified, few_shot
from metalearn.types import Params


@dataclass(frozen=True)
class Supervision:
    """What a network is pre-trained on, and measured by.

    few_shot: one source for each number of shots. validation_episodes: of each of them.
    """

    images: BaseImages
    division: Division
    few_shot: Sequence[FewShotEpisodes]
    validation_episodes: int
    schedule: Schedule
    settings: PretrainingSettings
    device: torch.device
    precision: str = "fp32"

    @property
    def steps(self) -> int:
        """In all."""
        whole, given = self.settings.epochs * self.images.epoch, self.settings.steps
        return whole if given is None else min(given, whole)

    @property
    def forward(self) -> Forward:
        """How images go through the network when it is measured."""
        return Forward(self.images.pictures, self.device, self.settings.channels_last)


@dataclass
class PretrainState:
    """Where pre-training stands; `dump` and `load` are its form in a checkpoint.

    turns: the head that tells quarter turns, None without. averaged: the running average of the
    weights, None without. best: the tensors of the selected weights.
    """

    module: nn.Module
    turns: nn.Module | None
    optimizer: Optimizer
    averaged: AveragedModel | None
    best: Params
    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    wandb_id: str | None = None
    commit: str | None = None

    @property
    def kept(self) -> nn.Module:
        """The network that is validated: the average where there is one."""
        return self.module if self.averaged is None else self.averaged.module

    def dump(self) -> dict[str, Any]:
        """Everything that changes during training."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            **{name: part.state_dict() for name, part in self._modules().items()},
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "generators": generator_states(),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `dump` returned."""
        for name in _NUMBERS:
            setattr(self, name, saved[name])
        for name, part in self._modules().items():
            restore(part, saved[name])
        self.best = {name: saved["best"][name].to(t.device) for name, t in self.best.items()}
        self.optimizer.load_state_dict(saved["optimizer"])
        for weight, moments in self.optimizer.state.items():
            for name, t in moments.items():
                # Where memory is laid out otherwise, the same sum may be rounded otherwise.
                if isinstance(t, Tensor) and t.shape == weight.shape:
                    moments[name] = torch.empty_like(weight).copy_(t)
        restore_generators(saved["generators"])

    def _modules(self) -> dict[str, nn.Module]:
        parts = {"module": self.module, "turns": self.turns, "averaged": self.averaged}
        return {name: part for name, part in parts.items() if part is not None}


_NUMBERS = ("step", "best_step", "best_score", "seconds", "wandb_id", "commit")


def averaging(module: nn.Module, decay: float) -> AveragedModel | None:
    """The running average of weights and buffers that keeps `decay` of itself in a step; None for
    0. Raises UsageError for a decay that is not below 1."""
    if not 0 <= decay < 1:
        raise UsageError(f"training.ema={decay} must be 0 or more, and below 1")
    if not decay:
        return None
    mean = get_ema_avg_fn(decay)

    def average(before: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        # Some networks keep tables of integers in their buffers.
        return mean(before, now, count) if before.is_floating_point() else now  # type: ignore

    return AveragedModel(module, avg_fn=average, use_buffers=True)


def resume(state: PretrainState, folder: Path, warn: Callable[[str], None]) -> bool:
    """Load the newest readable checkpoint under `folder`; False where there is none."""
    saved = latest_checkpoint(folder / "checkpoints", warn)
    if saved is not None:
        state.load(saved)
    return saved is not None


def pretrain(what: Supervision, state: PretrainState, folder: Path, tracker: Tracker) -> bool:
    """Train to the end, or until SIGTERM; `state` is updated in place.

    Checkpoints go to `folder/checkpoints`. Returns False where SIGTERM ended it early.
    """
    settings, steps, checkpoints = what.settings, what.steps, folder / "checkpoints"
    interval = settings.validate_every * what.images.epoch
    began = time.monotonic() - state.seconds
    workers = settings.workers
    if workers is None:
        workers = 1 if what.device.type == "cuda" else 0
    stop = threading.Event()
    with (
        at_sigterm(stop.set),
        computing_in(what.precision, what.device),
        closing(what.images.batches(range(state.step, steps), workers)) as coming,
    ):
        since = state.step, time.perf_counter()
        for batch in coming:
            values = _train_step(what, state, batch)
            stopping, last = stop.is_set(), state.step == steps
            validates = last or state.step % interval == 0
            saves = validates or stopping or state.step % settings.checkpoint_every == 0
            if validates or state.step % settings.record_every == 0:
                record = {name: float(value) for name, value in values.items()}
                _check_finite(record, state.step)
                images = (state.step - since[0]) * settings.batch_size
                record["images_per_second"] = images / (time.perf_counter() - since[1])
                record["peak_memory_bytes"] = peak_memory_bytes(what.device)
                if validates:
                    record |= _validate(what, state, tracker)
                tracker.scalars(state.step, record)
                since = state.step, time.perf_counter()
            if saves:
                _check_finite(values, state.step)
                state.seconds = time.monotonic() - began
                save_checkpoint(checkpoints, state.step, state.dump())
                prune_checkpoints(checkpoints, settings.keep)
            if stopping and not last:
                return False
    state.seconds = time.monotonic() - began
    return True


def _train_step(
    what: Supervision, state: PretrainState, batch: Labelled
) -> dict[str, Tensor | float]:
    settings, optimizer = what.settings, state.optimizer
    factor = what.schedule(state.step, what.steps, what.images.epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    batch = batch._replace(
        x=what.forward.laid_out(batch.x),
        y=batch.y.to(what.device),
        other=batch.other.to(what.device),
    )
    state.module.train()
    with torch.autocast(what.device.type, torch.bfloat16, enabled=what.precision == "bf16"):
        loss, accuracy = loss_and_accuracy(
            state.module, batch, settings.label_smoothing, state.turns, settings.rotation
        )
    loss.backward()
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    limit = math.inf if settings.clip_norm is None else settings.clip_norm
    norm = torch.nn.utils.clip_grad_norm_(learned, limit)
    optimizer.step()
    optimizer.zero_grad()
    if state.averaged is not None:
        state.averaged.update_parameters(state.module)
    state.step += 1
    rate = optimizer.param_groups[0]["lr"]
    loss = loss.detach()
    return {"loss": loss, "accuracy": accuracy, "grad_norm": norm, "learning_rate": rate}


def _check_finite(values: dict[str, Any], step: int) -> None:
    if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
        raise UsageError(
            f"the loss or its gradient is not finite at step {step}; lower optimizer.lr, or set "
            "training.clip_norm (earlier checkpoints are kept)"
        )


def _validate(what: Supervision, at: PretrainState, tracker: Tracker) -> dict[str, float]:
    """Measure, and keep the weights where they are the best; the scalars to record."""
    record: dict[str, float] = {}
    score = math.nan
    if len(what.division.val):
        right, losses = classified(what.forward, at.kept, what.division.val)
        held_out = mean_interval(right)
        score = held_out.mean
        record = {
            "held_out_accuracy": held_out.mean,
            "held_out_half_width": held_out.half_width,
            "held_out_loss": float(losses.mean()),
        }
    measured = few_shot(what.forward, at.kept, what.few_shot, "val", what.validation_episodes)
    for source, values in zip(what.few_shot, measured, strict=True):
        episodes = {"index": list(range(len(values))), "accuracy": values.tolist()}
        tracker.episodes(at.step, f"val {source.ways}-way {source.shots}-shot", episodes)
    if what.settings.select == "few_shot":
        score = float(np.mean([values.mean() for values in measured]))
    best, last = at.best_score, what.settings.select == "last"
    if last or best is None or math.isnan(best) or score > best:
        at.best_score, at.best_step, at.best = score, at.step, state(at.kept)
    return record
