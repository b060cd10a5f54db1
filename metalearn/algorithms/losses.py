"""Losses of one task that can be differentiated twice under every transform.

Of targets that are a dict they take the classes, under `label`, of outputs the `logits`. A class
that a task lacks has the logit `absent` for every example: no loss and no derivative sees it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from metalearn.classifiers.classes import absent
from metalearn.errors import UsageError
from metalearn.functional.outputs import tensor_of
from metalearn.types import Batch, Metrics

Loss = Callable[[Tensor, Batch], tuple[Tensor, Metrics]]
"""(outputs, batch) -> (the scalar loss, scalar metrics with `loss` among them)."""

L = TypeVar("L", bound=Callable)


def of_classes(loss: L) -> L:
    """`loss`, marked: whole numbers among its targets are classes (`inner.labels`)."""
    loss.of_classes = True  # type: ignore[attr-defined]
    return loss


def is_there(logits: Tensor) -> Tensor:
    """Which of `logits` are of a class that the task has."""
    return ~(logits <= absent(logits) / 2)  # a NaN is there, and seen


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over B of `[..., B]` values, leaving out padding (weight 0), whatever it holds.

    Raises UsageError for weights of another shape.
    """
    if weight is None:
        return values.mean(-1)
    if weight.shape != values.shape:
        raise UsageError(
            f"losses are of shape {list(values.shape)}, but weights of {list(weight.shape)}; "
            "give each example one weight"
        )
    return (torch.where(weight == 0, 0, values) * weight).sum(-1) / weight.sum(-1)


def _labels(logits: Tensor, batch: Batch, name: str) -> Tensor:
    """The classes `[B, 1]` of logits `[B, N]`. Raises UsageError for other shapes or targets."""
    labels = batch.labels
    if labels.is_floating_point():
        raise UsageError(f"loss={name} is for classes; use loss=auto or mean_squared")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise UsageError(
            f"loss={name} takes outputs [B, N] and classes [B], not {list(logits.shape)} and "
            f"{list(labels.shape)}; change the network's last layer or the targets"
        )
    return labels.long().unsqueeze(1)


def _judged(values: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    """The mean of the losses `[B]`; metrics loss and accuracy. What is not finite is not right:
    the largest of NaN would be the first class."""
    return _loss_and_accuracy(values, logits.detach().argmax(1), batch)


def _loss_and_accuracy(values: Tensor, answers: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
    loss = mean(values, batch.weight)
    right = (answers == batch.labels) & values.detach().isfinite()
    accuracy = mean(right.to(values.dtype), batch.weight)
    return loss, {"loss": loss.detach(), "accuracy": accuracy}


def cross_entropy_of_tasks(logits: Tensor, batch: Batch) -> Metrics:
    """The metrics `[T]` of `cross_entropy`, of logits `[T, B, N]` and classes `[T, B]`."""
    # A row a class, as fast as it gets.
    by_class, labels = logits.mT.contiguous(), batch.labels.unsqueeze(-2)
    labels = labels.clamp(0, by_class.shape[-2] - 1)  # padding may have any
    values = -by_class.log_softmax(-2).gather(-2, labels).squeeze(-2)
    return _loss_and_accuracy(values, by_class.max(-2)[1], batch)[1]


@of_classes
def auto(outputs: Tensor, batch: Batch, /) -> tuple[Tensor, Metrics]:
    """`cross_entropy` of classes, `mean_squared` of real targets."""
    return (mean_squared if batch.labels.is_floating_point() else cross_entropy)(outputs, batch)


@of_classes
def cross_entropy(logits: Tensor, batch: Batch, /) -> tuple[Tensor, Metrics]:
    """Softmax cross-entropy of logits `[B, N]` and classes `[B]`; metrics loss and accuracy."""
    logits = tensor_of(logits)
    labels = _labels(logits, batch, "cross_entropy")
    return _judged(-logits.log_softmax(1).gather(1, labels).squeeze(1), logits, batch)


@of_classes
def label_smoothed(
    logits: Tensor, batch: Batch, /, smoothing: float = 0.1
) -> tuple[Tensor, Metrics]:
    """Cross-entropy with a share of the label spread over all N classes that are there.

        L = -(1 - s) log p_y - s / N sum over n of  log p_n

    Shapes and metrics as in `cross_entropy`. Raises UsageError for a share outside [0, 1].

    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture for Computer
    Vision, 2016, section 7.
    """
    if not 0 <= smoothing <= 1:
        raise UsageError(f"loss.smoothing={smoothing} must be 0 to 1")
    logits = tensor_of(logits)
    labels = _labels(logits, batch, "label_smoothed")
    log_p, there = logits.log_softmax(1), is_there(logits)
    own = log_p.gather(1, labels).squeeze(1)
    spread = torch.where(there, log_p, 0).sum(1) / there.sum(1)
    return _judged(-(1 - smoothing) * own - smoothing * spread, logits, batch)


@of_classes
def focal(logits: Tensor, batch: Batch, /, gamma: float = 2.0) -> tuple[Tensor, Metrics]:
    """Cross-entropy that leaves alone what is right already: L = -(1 - p_y)^gamma log p_y.

    Shapes and metrics as in `cross_entropy`; gamma 0 is that. Raises UsageError for less.

    Lin, Goyal, Girshick, He, Dollar: Focal Loss for Dense Object Detection, 2017, eq. 4.
    """
    if not gamma >= 0:
        raise UsageError(f"loss.gamma={gamma} must be 0 or more")
    logits = tensor_of(logits)
    labels = _labels(logits, batch, "focal")
    own = labels == torch.arange(logits.shape[1], device=logits.device)
    whole = logits.logsumexp(1)
    # 1 - p_y as the others' share, in logarithms: a power of 1 - p_y itself has no second
    # derivative where p_y is 1.
    log_others = torch.where(own, absent(logits), logits).logsumexp(1) - whole
    # Padding may be labelled as a class that is not there, and 0 * inf has no derivative.
    log_p = logits.gather(1, labels).squeeze(1) - whole
    log_p = torch.where(is_there(log_p), log_p, 0)
    return _judged(-(gamma * log_others).exp() * log_p, logits, batch)


def present(loss: Loss) -> Loss:
    """`loss` among the classes that have an example in the batch, padding left out: for tasks
    that may have fewer classes than the network has outputs, and a query of each that they have."""

    @of_classes
    def among_present(logits: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        logits = tensor_of(logits)
        member = batch.labels.unsqueeze(1) == torch.arange(logits.shape[1], device=logits.device)
        if batch.weight is not None:
            member = member & (batch.weight > 0).unsqueeze(1)
        return loss(torch.where(member.any(0), logits, absent(logits)), batch)

    return among_present


@of_classes
def mean_squared(values: Tensor, batch: Batch, /) -> tuple[Tensor, Metrics]:
    """Mean squared error of values and targets, both `[B, *Y]`; metric loss.

    A last dimension of 1 may be missing in one of them. Classes `[B]` are one-hot targets of the
    scores `[B, N]`, as in Sung et al.: Learning to Compare: Relation Network for Few-Shot
    Learning, 2018, eq. 2; metrics loss and accuracy. Raises UsageError for other shapes.
    """
    values = tensor_of(values)
    # Written out: forward mode over the gradient of F.mse_loss raises (pytorch 123996).
    if batch.labels.is_floating_point():
        error = values - _of_shape(values, batch.labels)
        loss = mean((error * error).reshape(len(error), -1).mean(1), batch.weight)
        return loss, {"loss": loss.detach()}
    labels, there = _labels(values, batch, "mean_squared"), is_there(values)
    hot = labels == torch.arange(values.shape[1], device=values.device)
    error = torch.where(there, values - hot.to(values.dtype), 0)
    return _judged((error * error).sum(1) / there.sum(1), values, batch)


def _of_shape(values: Tensor, targets: Tensor) -> Tensor:
    """`targets` in the shape of `values`: torch would fill `[B, 1]` and `[B]` up to `[B, B]`."""
    if targets.shape == values.shape:
        return targets
    if values.shape == (*targets.shape, 1) or targets.shape == (*values.shape, 1):
        return targets.reshape(values.shape)
    raise UsageError(
        f"the network returns {list(values.shape)} for targets {list(targets.shape)}; "
        "loss=mean_squared takes two of one shape"
    )
