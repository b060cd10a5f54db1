"""Schedules against torch's own."""

import pytest
import torch
from torch.optim import lr_scheduler

from metalearn.errors import UsageError
from metalearn.training.rates import constant, cosine, milestones

EPOCH, STEPS = 8, 60


def torchs(make) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_cosine_without_and_with_a_warm_up() -> None:
    want = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.01))
    plain = cosine(min_factor=0.01)
    assert [plain(s, STEPS, EPOCH) for s in range(STEPS)] == pytest.approx(want, abs=1e-12)
    rising, rest = cosine(warmup=1.5), cosine()
    assert [rising(s, STEPS, EPOCH) for s in range(12)] == pytest.approx(
        [(s + 1) / 12 for s in range(12)]
    )
    after = [rest(s, STEPS - 12, EPOCH) for s in range(STEPS - 12)]
    assert [rising(s, STEPS, EPOCH) for s in range(12, STEPS)] == pytest.approx(after, abs=1e-12)


def test_milestones_and_constant() -> None:
    want = torchs(lambda o: lr_scheduler.MultiStepLR(o, [3 * EPOCH, 5 * EPOCH], gamma=0.2))
    found = milestones([3, 5], 0.2)
    assert [found(s, STEPS, EPOCH) for s in range(STEPS)] == pytest.approx(want, abs=1e-12)
    assert {constant()(s, STEPS, EPOCH) for s in range(STEPS)} == {1.0}


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(UsageError, match="schedule.warmup=-1 must be 0 or more"):
        cosine(-1)
