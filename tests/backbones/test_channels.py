"""Channels that go are gone: the smaller network is the large one whose readers see zeros there."""

import pytest
import torch
from torch import nn

from metalearn.backbones import CifarResNet, Conv4, ResNet12, WideResNet, timm_model
from metalearn.backbones.channels import Channels, chains
from metalearn.errors import UsageError
from tests.tasks import network

MADE = {
    "conv4": (lambda: Conv4(3, 3, filters=8, size=16, norm="frozen"), 4),
    "conv4 features": (lambda: Conv4(None, 3, filters=8, size=32, norm="running"), 3),
    "resnet20": (lambda: CifarResNet(3, depth=20, norm="frozen"), 9),
    "resnet12": (lambda: ResNet12(3, 3, 32, widths=[4, 6, 8, 10], drop_rate=0.1), 8),
    "wide": (lambda: WideResNet(3, 3, 32, depth=10, width=1, norm="frozen"), 3),
    "timm": (lambda: timm_model("resnet10t", 3, 3, 32, norm="frozen"), None),
}


@pytest.mark.parametrize("name", MADE)
def test_the_smaller_network_is_the_large_one_with_zeros(name: str) -> None:
    make, count = MADE[name]
    large = network(make).eval()
    pairs, small = chains(large), Channels(0.5)(large).eval()
    assert count is None or len(pairs) == count
    before, after = dict(large.named_parameters()), dict(small.named_parameters())
    assert before.keys() == after.keys()
    numbers = [sum(t.numel() for t in weights.values()) for weights in (before, after)]
    assert numbers[1] < 0.7 * numbers[0]
    for writer, (_, reader) in pairs.items():
        weight = large.get_submodule(writer).weight
        size = weight.abs().sum((1, 2, 3))
        gone = torch.argsort(size, descending=True)[max(1, round(len(size) / 2)) :]
        place = large.get_submodule(reader).weight
        with torch.no_grad():
            place.view(len(place), len(size), -1)[:, gone] = 0
    x = torch.rand(2, 3, *([16, 16] if name == "conv4" else [32, 32])).double()
    torch.testing.assert_close(small(x), large(x), rtol=1e-9, atol=1e-9)


class Doubled(nn.Module):
    """Its outputs depend on the values that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * 2 if x.sum() > 0 else self.conv(x)


def test_what_it_cannot_do_is_one_line() -> None:
    with pytest.raises(UsageError, match="finds no convolution whose channels one other layer"):
        Channels()(Conv4(3, norm="group"))
    with pytest.raises(UsageError, match=r"pruning=channels cannot follow the network \("):
        Channels()(Doubled())
    with pytest.raises(UsageError, match=r"pruning.sparsity=1.0 must be 0 or more, and below 1"):
        Channels(1.0)
