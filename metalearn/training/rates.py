"""The steps of a supervised training: how many, at what rate, and when it is lost. The rate is a
factor for every step, which needs no state."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from metalearn.errors import Diverged, UsageError
from metalearn.training.settings import PretrainingSettings
from metalearn.training.stage import Pace

Schedule = Callable[[int, int, int], float]
"""(step from 0, steps in all, steps an epoch) to the factor of the optimizer's rate."""


def cosine(warmup: float = 0.0, min_factor: float = 0.0) -> Schedule:
    """Up in a line over `warmup` epochs, then down along a cosine to `min_factor` at the end.

        min_factor + (1 - min_factor) * (1 + cos(pi * t)) / 2,  t from 0 to 1 after the warm-up

    Loshchilov, Hutter 2017, eq. 5, without restarts. Raises UsageError for a warm-up below 0.
    """
    if not warmup >= 0:
        raise UsageError(f"schedule.warmup={warmup} must be 0 or more")

    def factor(step: int, steps: int, epoch: int) -> float:
        rising = warmup * epoch
        if step < rising:
            return min((step + 1) / rising, 1.0)
        t = (step - rising) / max(steps - rising, 1)
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * t)) / 2

    return factor


def milestones(epochs: Sequence[float], factor: float = 0.1) -> Schedule:
    """Times `factor` after each of so many `epochs`."""

    def of(step: int, steps: int, epoch: int) -> float:
        return factor ** sum(step >= end * epoch for end in epochs)

    return of


def constant() -> Schedule:
    """One rate throughout."""
    return lambda step, steps, epoch: 1.0


def pace(settings: PretrainingSettings, epoch: int) -> Pace:
    """As the settings say, which count validations by epochs. epoch: steps in one."""
    whole, given = settings.epochs * epoch, settings.steps
    names = ("checkpoint_every", "record_every", "keep", "workers")
    more = {name: getattr(settings, name) for name in names}
    steps = whole if given is None else min(given, whole)
    return Pace(steps, settings.validate_every * epoch, **more)


def moved(optimizer: Optimizer) -> list[Tensor]:
    """The weights that an optimizer moves."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def stepped(
    optimizer: Optimizer, factor: float, clip_norm: float | None
) -> dict[str, Tensor | float]:
    """One step along the gradients, which are gone after it; their norm and the rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    limit = math.inf if clip_norm is None else clip_norm
    norm = torch.nn.utils.clip_grad_norm_(moved(optimizer), limit)
    optimizer.step()
    optimizer.zero_grad()
    return {"grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}


def check_finite(values: Mapping[str, float], number: int) -> None:
    """Raise Diverged where the loss of step `number` or its gradient is not finite."""
    if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
        raise Diverged(
            f"the loss or its gradient is not finite at step {number}; lower optimizer.lr, or "
            "set training.clip_norm (earlier checkpoints are kept)"
        )
