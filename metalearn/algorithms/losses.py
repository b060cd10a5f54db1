"""Losses of one task that can be differentiated twice under every transform."""

from collections.abc import Callable

import torch
from torch import Tensor

from metalearn.types import Batch, Metrics

Loss = Callable[[Tensor, Batch], tuple[Tensor, Metrics]]
"""(outputs, batch) -> (the scalar loss, scalar metrics with `loss` among them)."""


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of `[B]` values, leaving out padding (weight 0)."""
    return values.mean() if weight is None else (values * weight).sum() / weight.sum()


def cross_entropy(logits: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """Softmax cross-entropy of logits `[B, N]` and classes `[B]`; metrics loss and accuracy."""
    labels = batch.y.unsqueeze(1)
    loss = mean(-logits.log_softmax(1).gather(1, labels).squeeze(1), batch.weight)
    right = (logits.detach().argmax(1) == batch.y).to(logits.dtype)
    return loss, {"loss": loss.detach(), "accuracy": mean(right, batch.weight)}


def present_cross_entropy(logits: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """`cross_entropy` among the classes that have an example in the batch, padding left out: for
    tasks that may have fewer classes than the network has outputs."""
    member = batch.y.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
    if batch.weight is not None:
        member = member & (batch.weight > 0).unsqueeze(1)
    absent = torch.finfo(logits.dtype).min
    return cross_entropy(torch.where(member.any(0), logits, absent), batch)


def mean_squared(values: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """Mean squared error of values and targets, both `[B, *Y]`; metric loss."""
    # Written out: forward mode over the gradient of F.mse_loss raises (pytorch 123996).
    error = values - batch.y
    loss = mean((error * error).flatten(1).mean(1), batch.weight)
    return loss, {"loss": loss.detach()}
