"""The cosine head against torch's cosine, where features are zero too; low-rank paths."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap

from metalearn.backbones import MLP, Conv4
from metalearn.backbones.heads import CosineHead, cosine, head_name, linear, zero
from metalearn.backbones.lora import LowRank, insert
from metalearn.errors import UsageError
from tests.tasks import generator, network


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_at_zero_have_no_direction_and_no_slope_to_speak_of(dtype):
    """1 / |x| there would be a gradient of millions, and a step that follows it alone."""
    head = CosineHead(noise(3, 8).to(dtype), 10.0)
    x = noise(4, 8).to(dtype)
    x[1] = 0
    x[2] = 1e-30
    logits = head(x)
    assert not logits[1].any() and logits[2].abs().max() < 1e-20

    def loss(x):
        return (head(x) * noise(4, 3, seed=1).to(dtype)).sum()

    slope = grad(loss)(x)
    assert slope[1:3].abs().max() < 50 and slope.isfinite().all()
    curved = grad(lambda x: (grad(loss)(x) * noise(4, 8, seed=2).to(dtype)).sum())(x)
    assert curved.isfinite().all() and curved[1:3].abs().max() < 50


def test_logits_are_scaled_cosines_with_the_linear_layers_weights():
    net = network(lambda: Conv4(3, filters=4, size=16))
    new = cosine(net, "head", 7.0)
    x = noise(5, 1, 16, 16)
    features = net.features(x).flatten(1)
    want = 7 * F.cosine_similarity(features.unsqueeze(1), net.head.weight.unsqueeze(0), dim=2)
    torch.testing.assert_close(new(x), want, rtol=1e-10, atol=0)
    assert head_name(new) == "head" and isinstance(net.head, nn.Linear)
    assert {n for n, _ in new.head.named_parameters()} == {"weight", "scale"}


def test_a_head_at_zero_leaves_the_body_and_the_given_network_as_they_are():
    net = network(lambda: Conv4(3, filters=4, size=16))
    new = zero(net, "head")
    x = noise(5, 1, 16, 16)
    assert torch.equal(new(x), torch.zeros(5, 3, dtype=torch.float64))
    assert torch.equal(new.features(x), net.features(x)) and net.head.weight.abs().sum() > 0


def test_a_zero_feature_has_finite_derivatives_of_second_order():
    head = CosineHead(noise(3, 4).float())
    weights = {n: p.detach() for n, p in head.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(head, weights, (x,)).logsumexp(1).sum()

    def slope(weights, x):
        return sum(g.square().sum() for g in grad(loss, argnums=(0, 1))(weights, x)[0].values())

    x = torch.stack([torch.zeros(2, 4), torch.ones(2, 4)])
    found = vmap(grad(slope, argnums=(0, 1)), in_dims=(None, 0))(weights, x)
    assert all(t.isfinite().all() for t in (*found[0].values(), found[1]))
    assert (loss(weights, x[0]) - 2 * torch.tensor(3.0).log()).abs() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    head = CosineHead(noise(3, 400))
    x = 300 * noise(2, 400, seed=1)
    got = copy.deepcopy(head).to(dtype)(x.to(dtype))
    torch.testing.assert_close(got.double(), head(x), rtol=0, atol=0.05)


def test_heads_that_cannot_be():
    net = MLP(4, 3)
    assert linear(net, "head") is net
    for scale, path, line in (
        (0.0, "head", "head.scale=0.0 must be above 0"),
        (1.0, None, "head=cosine is of a network with outputs"),
        (1.0, "features", r"ends in features \(Sequential\), not a linear layer"),
    ):
        with pytest.raises(UsageError, match=line):
            cosine(net, path, scale)
    for path, line in ((None, "head=zero is of a network"), ("features", "not a linear layer")):
        with pytest.raises(UsageError, match=line):
            zero(net, path)
    with pytest.raises(UsageError, match="no weight of the network is learned"):
        head_name(net.requires_grad_(False))
    bare = cosine(nn.Linear(4, 3), "")
    assert isinstance(bare, CosineHead)


class Odd(nn.Conv2d):
    """A convolution with padding of its own."""

    def forward(self, input):
        return super().forward(F.pad(input, (1, 0, 1, 0)))


class Layers(nn.Module):
    """Every kind of layer, one at two places, and one whose weight is read from outside."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, (2, 1), 1, dilation=2, padding_mode="circular")
        self.grouped = nn.Conv2d(6, 6, 3, groups=2)
        self.odd = Odd(6, 6, 2)
        self.first = self.second = nn.Linear(6, 6)
        self.read = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = self.odd(self.grouped(self.conv(x))).flatten(2).transpose(1, 2)
        h = self.second(torch.tanh(self.first(h)))
        h = h + F.linear(h, self.read.weight, self.read.bias)
        return self.head(self.attention(h, h, h)[0].mean(1))


def test_a_low_rank_path_adds_nothing_at_its_start():
    net = network(Layers)
    x = noise(3, 2, 12, 9)
    new = insert(copy.deepcopy(net), "head", 2, 5.0)
    torch.testing.assert_close(new(x), net(x), rtol=0, atol=0)
    inserted = {n for n, p in new.named_modules(remove_duplicate=False) if isinstance(p, LowRank)}
    assert inserted == {"conv", "first", "second", "read"} and new.first is new.second


def test_a_low_rank_path_is_its_dense_weight():
    new = insert(network(Layers), "head", 2, 5.0)
    with torch.no_grad():
        for part in new.modules():
            if isinstance(part, LowRank):
                part.up.weight.copy_(noise(*part.up.weight.shape))
    dense = network(Layers)
    for name in ("conv", "first", "read"):
        path = new.get_submodule(name)
        down, up = path.down.weight.flatten(1), path.up.weight.flatten(1)
        with torch.no_grad():
            added = 5.0 / 2 * (up @ down).view_as(path.base.weight)
            dense.get_submodule(name).weight.add_(added)
    x = noise(3, 2, 12, 9)
    torch.testing.assert_close(new(x), dense(x), rtol=1e-12, atol=1e-13)
    assert (new(x) - network(Layers)(x)).norm() > 0.1
