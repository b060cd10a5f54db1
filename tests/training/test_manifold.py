"""Manifold mixup against passes through the network in two halves, and S2M2's loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from metalearn.backbones import CifarResNet, Conv4, ResNet12, WideResNet
from metalearn.commands.building.config import compose
from metalearn.commands.pretrain import build
from metalearn.errors import UsageError
from metalearn.training.classification import loss_and_accuracy, torch_norms, with_features
from metalearn.training.manifold import mixed_layers, mixing_inside
from metalearn.training.mixing import Labelled, Mixing


def images(count: int, channels: int = 1, dtype=torch.float64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, 16, 16, generator=rng, dtype=dtype)


def network() -> Conv4:
    torch.manual_seed(0)
    return torch_norms(Conv4(5, 1, 4, 16, norm="frozen")).double()


def test_a_layer_takes_the_mixed_maps() -> None:
    net, x = network().train(), images(6)
    layers = mixed_layers(net, "head", x)
    assert layers == [f"features.{place}" for place in (0, 4, 8, 12)]
    partner, y = torch.tensor([2, 0, 5, 1, 4, 3]), torch.arange(6) % 5
    for number, place in enumerate((0, 4, 8, 12)):
        batch = Labelled(x, y, y[partner], 0.3, partner, (number + 0.5) / 4)
        with mixing_inside(net, layers, batch):
            found = net(x)
        h = net.features[:place](x)
        want = net.features[place:](0.3 * h + 0.7 * h[partner]).flatten(1)
        torch.testing.assert_close(found, net.head(want), rtol=1e-10, atol=0)
    assert not any(part._forward_pre_hooks for part in net.modules())


class Lone(nn.Module):
    """A whole network inside one child, as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet12(5, 1, 16, (4, 4, 8, 8))

    def forward(self, x):
        return self.net(x)


LAYERS = {
    "resnet12": (lambda: ResNet12(5, 1, 16, (4, 4, 8, 8)), "head", 4, "features.3"),
    "wide": (lambda: WideResNet(5, 1, 16, 10, 1), "head", 4, "features.2"),
    "cifar": (lambda: CifarResNet(5, 1, 16, 8), "head", 4, "layer3.0"),
    "lone": (Lone, "net.head", 4, "net.features.3"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_first_layer_and_the_blocks(name: str) -> None:
    make, head, count, last = LAYERS[name]
    net = make().train()
    found = mixed_layers(net, head, images(3, dtype=torch.float32))
    assert len(found) == count and found[-1] == last and net.training
    if name == "wide":  # S2M2's: the images, and what its three stages give
        named = ["conv1", "bn", "features.1", "features.2"]
        found = mixed_layers(net, head, images(3, dtype=torch.float32), named)
        assert found == ["conv1", "features.1", "features.2", "bn"]


def test_layers_that_cannot_be_mixed_are_one_line() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.Linear(4, 3))
    net.unused = nn.Linear(2, 2)
    net.forward = lambda x: net[2](net[1](net[0](x)))
    x = images(3, dtype=torch.float32)
    assert mixed_layers(net, "2", x) == ["1"]
    with pytest.raises(UsageError, match="has unused, which takes no tensor with a row for every"):
        mixed_layers(net, "2", x, ["1", "unused"])
    with pytest.raises(UsageError, match="has 7, no part of the backbone"):
        mixed_layers(net, "2", x, ["7"])


def test_what_is_drawn() -> None:
    x, y = images(6, dtype=torch.float32), torch.arange(6)
    drawn = [Mixing(manifold=2.0)(x, y, np.random.default_rng(seed)) for seed in range(400)]
    assert all(found.x is x and torch.equal(found.other, y[found.partner]) for found in drawn)
    assert stats.kstest([found.share for found in drawn], stats.beta(2, 2).cdf).pvalue > 0.01
    assert stats.kstest([found.place for found in drawn], "uniform").pvalue > 0.01
    every = Mixing(1.0, 1.0, 1.0)
    inside = sum(every(x, y, np.random.default_rng(s)).partner is not None for s in range(400))
    assert stats.binomtest(inside, 400, 1 / 3).pvalue > 0.01


def test_the_loss_of_s2m2_against_its_parts() -> None:
    net, x = network().eval(), images(6)
    rotation_head = nn.Linear(4, 4).double()
    y, partner = torch.arange(6) % 5, torch.arange(6).flip(0)
    batch = Labelled(x, y, y[partner], 0.8, partner, 0.6)
    loss, _ = loss_and_accuracy(
        net, batch, 0.1, rotation_head, 0.5, layers=["features.0", "features.8"]
    )
    with torch.no_grad():
        h = net.features[:8](x)
        logits = net.head(net.features[8:](0.8 * h + 0.2 * h[partner]).flatten(1))
        want = 0.8 * F.cross_entropy(logits, y, label_smoothing=0.1)
        want = want + 0.2 * F.cross_entropy(logits, y[partner], label_smoothing=0.1)
        for quarters in range(4):
            own, features = with_features(net, torch.rot90(x, quarters, (2, 3)))
            angle = torch.full((6,), quarters)
            want = want + 0.125 * F.cross_entropy(rotation_head(features), angle)
            want = want + 0.125 * F.cross_entropy(own, y, label_smoothing=0.1)
    assert loss.item() == pytest.approx(want.item(), rel=1e-10)


def test_the_batches_of_a_run_are_mixed(workplace) -> None:
    asked = ["dataset.classes=24", "dataset.size=16", "backbone.filters=4", "episodes.ways=3"]
    stage = build(compose([*asked, "manifold_mixup.alpha=2", "device=cpu"], "pretrain"))[1]
    assert stage.layers == [f"features.{place}" for place in (0, 4, 8, 12)]
    first, again = (next(stage.images.batches(range(1))) for _ in range(2))
    assert first.partner is not None and 0 < first.share < 1
    assert torch.equal(first.partner, again.partner) and first.place == again.place
