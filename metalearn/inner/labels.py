"""One rule for the classes of a task, whatever the algorithm.

They are 0, 1, ..., N - 1 in every task, and each has a support example: an output of the network,
or a row of a classifier, is a class by its number. A classifier that was told how many there are
at most (`ways`) does not see a task with more.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.errors import UsageError
from metalearn.types import Batch


def judges_classes(algo: Any) -> bool:
    """Whether whole numbers among the targets are classes: by the loss, or by the algorithm."""
    loss: Any = getattr(algo, "loss", None)
    while hasattr(loss, "func"):  # functools.partial
        loss = loss.func
    return bool(getattr(algo, "of_classes", False) or getattr(loss, "of_classes", False))


def check_labels(algo: Any, support: Batch, query: Batch | None = None) -> None:
    """Raise UsageError where the classes of a task are not 0 to N - 1, or one of the queries has
    no support example.

    support: of one task `[S]`, or of T `[T, S]`; query: likewise. Targets that are no classes pass,
    and so do tensors without values (under a transform of `torch.func`, or a compiler).
    """
    if torch.compiler.is_compiling():
        return
    own = getattr(getattr(algo, "loss", None), "check", None)  # of boxes, of masks
    if own is not None:
        with contextlib.suppress(RuntimeError):  # they have no values here
            own(algo, support, query)
        return
    if not judges_classes(algo):
        return
    of_support = _classes(support)
    if of_support is None:
        return
    labels, real = of_support
    # A class has an example, so there are no more classes than examples.
    high = np.where(real, labels, 0).max(1, initial=0)
    wrong = (np.where(real, labels, 0).min(1, initial=0) < 0) | (high >= labels.shape[1])
    there = np.zeros((len(labels), labels.shape[1] + 1), dtype=bool)
    rows = np.arange(len(labels))[:, None]
    there[rows, np.where(real & ~wrong[:, None], labels, -1)] = True
    there[:, -1] = False  # where padding went
    wrong |= there.sum(1) != high + 1
    if wrong.any():
        task = int(wrong.argmax())
        found = np.unique(labels[task][real[task]])
        told = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise UsageError(
            f"the support set of task {task} has the classes {told}; number those of a task from "
            "0 on without a gap, as torch.unique(y, return_inverse=True) does"
        )
    most = getattr(algo, "ways", None)
    if most is not None and (high >= most).any():
        task = int((high >= most).argmax())
        raise UsageError(
            f"task {task} has {high[task] + 1} classes, more than the classifier's ways={most}; "
            f"use ways={high.max() + 1}, or ways=None where it is not known"
        )
    of_query = None if query is None else _classes(query)
    if of_query is None:
        return
    asked, real = of_query
    unknown = real & ~there[rows, np.where((asked >= 0) & (asked < there.shape[1]), asked, -1)]
    if unknown.any():
        task, place = (int(at) for at in np.argwhere(unknown)[0])
        raise UsageError(
            f"class {asked[task, place]} of the queries of task {task} has no support example; "
            "leave it out, or give it one"
        )


def _classes(batch: Batch) -> tuple[np.ndarray, np.ndarray] | None:
    """The classes `[T, B]` and which of them are no padding; None for other targets."""
    y = batch.y
    labels = y.get("label") if isinstance(y, dict) else y
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim not in (1, 2):
        return None
    if labels.is_meta:
        return None
    try:
        numbers = np.atleast_2d(labels.detach().long().cpu().numpy())
        weight = None if batch.weight is None else batch.weight.detach().cpu().numpy()
    except RuntimeError:  # it has no values here
        return None
    if weight is None:
        return numbers, np.ones(numbers.shape, dtype=bool)
    return numbers, np.atleast_2d(weight > 0)
