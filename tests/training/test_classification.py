"""Networks for supervised training: torch's norms, the loss, the average of the weights."""

import copy
import math

import pytest
import torch
from torch import nn

from metalearn.backbones import Conv4, ResNet12, timm_model
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.training.classification import (
    averaging,
    groups,
    head_of,
    loss_and_accuracy,
    restore,
    rotated_four_ways,
    state,
    torch_norms,
    with_features,
)
from metalearn.training.mixing import Labelled


def images(count: int, channels: int = 1, size: int = 16) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["transductive", "frozen", "running"])
def test_torchs_norms_normalise_alike_and_learn_averages_that_ours_read(norm: str) -> None:
    torch.manual_seed(0)
    ours = Conv4(7, 1, 8, 16, norm=norm)
    theirs = torch_norms(copy.deepcopy(ours))
    assert sum(isinstance(part, nn.BatchNorm2d) for part in theirs.modules()) == 4
    x = images(9)
    if norm == "transductive":
        torch.testing.assert_close(theirs(x), ours(x))
    frozen = Conv4(7, 1, 8, 16, norm="frozen")
    assert list(theirs.state_dict()) == list(frozen.state_dict())
    expected = torch.zeros(8), torch.ones(8)
    for _ in range(3):  # the definition of the averages
        raw = theirs.features[0](x)
        count = raw.numel() / 8
        if norm == "transductive":
            break
        moments = raw.mean((0, 2, 3)), raw.var((0, 2, 3), correction=0) * count / (count - 1)
        expected = tuple(0.9 * old + 0.1 * new for old, new in zip(expected, moments, strict=True))
        theirs(x)
    if norm != "transductive":
        torch.testing.assert_close(theirs.features[1].running_mean, expected[0])
        torch.testing.assert_close(theirs.features[1].running_var, expected[1])
    restore(frozen, state(theirs))
    kept = pure(frozen)
    torch.testing.assert_close(kept.apply({**kept.params, **kept.buffers}, x), theirs.eval()(x))


def test_torchs_own_norms_stay_and_stop_counting() -> None:
    module = timm_model("resnet18", 5, 3, 32, norm="frozen")
    names = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    norms = {part for part in module.modules() if isinstance(part, nn.BatchNorm2d)}
    found = torch_norms(module)
    assert norms == {part for part in found.modules() if isinstance(part, nn.BatchNorm2d)}
    assert list(found.state_dict()) == names
    before = state(found)
    found.train()(images(4, 3, 32))
    assert not torch.equal(before["bn1.running_mean"], found.state_dict()["bn1.running_mean"])


def test_features_are_what_the_head_takes() -> None:
    for module in (ResNet12(5, 1, 16, widths=(4, 4, 8, 8)), timm_model("resnet18", 5, 1, 32)):
        module.eval()
        with torch.no_grad():
            logits, features = with_features(module, images(3, size=32))
        assert features.ndim == 2
        torch.testing.assert_close(head_of(module)(features), logits)
        assert not head_of(module)._forward_pre_hooks
    with pytest.raises(UsageError, match="no linear layer, and so no head"):
        head_of(nn.Conv2d(1, 1, 3))


def test_weight_decay_spares_norms_and_biases_if_told_and_what_is_frozen_is_left_out() -> None:
    module = Conv4(5, 1, 8, 16, norm="frozen")
    (all_,) = groups(module, True)
    assert len(all_["params"]) == len(list(module.parameters()))
    matrices, rest = groups(module, False)
    assert {p.ndim for p in matrices["params"]} == {2, 4} and "weight_decay" not in matrices
    assert {p.ndim for p in rest["params"]} == {1} and rest["weight_decay"] == 0
    for name, p in module.named_parameters():
        p.requires_grad = name.startswith("head")
    assert [len(g["params"]) for g in groups(module, False)] == [1, 1]
    for p in module.parameters():
        p.requires_grad = False
    with pytest.raises(UsageError, match="no weights that are trained"):
        groups(module, True)


def plain_loss(logits, y, smoothing: float) -> float:
    """Label-smoothed cross-entropy in Python's floats (Szegedy et al. 2016, section 7)."""
    total = 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        norm = math.log(sum(math.exp(v) for v in row))
        for n, v in enumerate(row):
            weight = smoothing / len(row) + (1 - smoothing) * (n == label)
            total -= weight * (v - norm) / len(logits)
    return total


@pytest.mark.parametrize(
    ("smoothing", "share", "rotation"), [(0, 1, 0), (0.1, 1, 0), (0.1, 0.3, 0), (0, 0.6, 0.5)]
)
def test_the_loss_against_plain_floats(smoothing: float, share: float, rotation: float) -> None:
    torch.manual_seed(0)
    module = torch_norms(Conv4(5, 1, 8, 16, norm="frozen")).double().eval()
    rotation_head = nn.Linear(8, 4).double()
    x, y = images(6).double(), torch.tensor([0, 1, 2, 3, 4, 0])
    other = y.flip(0)
    batch = Labelled(x, y, other, share)
    extra = (rotation_head, rotation) if rotation else (None, 0.0)
    loss, accuracy = loss_and_accuracy(module, batch, smoothing, *extra)
    with torch.no_grad():
        logits = module(x)
        want = share * plain_loss(logits, y, smoothing)
        want += (1 - share) * plain_loss(logits, other, smoothing)
        if rotation:
            for quarters in range(4):
                told = rotation_head(with_features(module, torch.rot90(x, quarters, (2, 3)))[1])
                want += rotation * plain_loss(told, torch.full((6,), quarters), 0.0) / 4
    assert loss.item() == pytest.approx(want, rel=1e-10)
    guess = logits.argmax(1)
    right = [share * (g == a) + (1 - share) * (g == b) for g, a, b in zip(guess, y, other)]  # noqa: B905
    assert float(accuracy) == pytest.approx(float(sum(right)) / 6)


def test_rotations_come_one_after_another() -> None:
    x = torch.arange(2 * 9.0).view(2, 1, 3, 3)
    found = rotated_four_ways(x)
    assert torch.equal(found[:2], x)
    # A quarter counter-clockwise: the last column becomes the first row.
    assert torch.equal(found[2, 0, 0], x[0, 0, :, 2]) and torch.equal(found[4], x[0].flip(1, 2))


def test_the_average_of_weights_and_buffers_against_a_loop() -> None:
    torch.manual_seed(0)
    module = torch_norms(Conv4(5, 1, 8, 16, norm="frozen"))
    module.register_buffer("table", torch.arange(5))
    averaged = averaging(module, 0.9)
    assert averaged is not None
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    want: dict[str, torch.Tensor] = {}
    for step in range(5):
        optimizer.zero_grad()
        loss_and_accuracy(module, Labelled(images(6), *[torch.arange(6) % 5] * 2))[0].backward()
        optimizer.step()
        averaged.update_parameters(module)
        now = {name: t.double() for name, t in state(module).items()}
        want = {n: 0.9 * want[n] + 0.1 * t if step else t for n, t in now.items()}
    found = averaged.module.state_dict()
    assert torch.equal(found.pop("table"), torch.arange(5)) and want.pop("table") is not None
    for name, t in found.items():
        torch.testing.assert_close(t.double(), want[name], rtol=1e-6, atol=1e-7)
    assert averaging(module, 0) is None
    with pytest.raises(UsageError, match="training.ema=1 must be 0 or more, and below 1"):
        averaging(module, 1)
