"""The losses equal torch's, and leave padding out."""

import torch
import torch.nn.functional as F

from metalearn import Batch
from metalearn.algorithms.losses import cross_entropy, mean_squared
from tests.tasks import generator

G = generator()
LOGITS = torch.randn(6, 4, generator=G, dtype=torch.float64)
CLASSES = torch.randint(4, (6,), generator=G)
WEIGHT = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 2.0], dtype=torch.float64)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)


def test_cross_entropy():
    loss, metrics = cross_entropy(LOGITS, Batch(LOGITS, CLASSES))
    close(loss, F.cross_entropy(LOGITS, CLASSES))
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES).double().mean())


def test_weighted_cross_entropy():
    loss, metrics = cross_entropy(LOGITS, Batch(LOGITS, CLASSES, WEIGHT))
    each = F.cross_entropy(LOGITS, CLASSES, reduction="none")
    rows = [0, 2, 3, 5, 5]
    close(loss, each[rows].mean())
    close(metrics["accuracy"], (LOGITS.argmax(1) == CLASSES)[rows].double().mean())


def test_mean_squared():
    targets = torch.randn(6, 4, generator=G, dtype=torch.float64)
    loss, metrics = mean_squared(LOGITS, Batch(LOGITS, targets))
    close(loss, F.mse_loss(LOGITS, targets))
    close(metrics["loss"], loss)
    loss, _ = mean_squared(LOGITS, Batch(LOGITS, targets, WEIGHT))
    close(loss, F.mse_loss(LOGITS[[0, 2, 3, 5, 5]], targets[[0, 2, 3, 5, 5]]))


def test_one_number_a_target():
    values, targets = LOGITS[:, 0], LOGITS[:, 1]
    close(
        mean_squared(values[:, None], Batch(values, targets[:, None]))[0],
        F.mse_loss(values, targets),
    )
