"""The pure module: torch's own outputs and running averages, exact in the second order."""

import copy

import pytest
import torch
from torch import nn

from metalearn.backbones import Conv4
from metalearn.functional import pure
from metalearn.functional.norms import BatchNorm, LayerNorm
from tests.tasks import generator, network


def same(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 + 2 * torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


NORMS = {
    "batch1d": (lambda: nn.BatchNorm1d(4), (6, 4)),
    "batch1d-sequence": (lambda: nn.BatchNorm1d(4), (6, 4, 5)),
    "batch2d": (lambda: nn.BatchNorm2d(4, eps=1e-2), (6, 4, 3, 5)),
    "batch2d-no-affine": (lambda: nn.BatchNorm2d(4, affine=False), (6, 4, 3, 5)),
    "batch2d-no-tracking": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 3, 5)),
    "batch3d": (lambda: nn.BatchNorm3d(2), (3, 2, 2, 3, 2)),
    "layer": (lambda: nn.LayerNorm(5, eps=1e-3), (6, 4, 5)),
    "layer-two-dims": (lambda: nn.LayerNorm([4, 5]), (6, 4, 5)),
    "layer-no-affine": (lambda: nn.LayerNorm(5, elementwise_affine=False), (6, 5)),
    "layer-no-bias": (lambda: nn.LayerNorm(5, bias=False), (6, 5)),
    "instance1d": (lambda: nn.InstanceNorm1d(4), (6, 4, 5)),
    "instance2d-affine": (lambda: nn.InstanceNorm2d(4, affine=True), (6, 4, 3, 5)),
    "instance2d-tracking": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (6, 4, 3, 5),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_norms_equal_torch(name, training):
    build, shape = NORMS[name]
    norm = network(build).train(training)
    net = pure(norm)
    assert type(net.module).__module__ == "metalearn.functional.norms"
    assert list(net.params) == [n for n, _ in norm.named_parameters()]
    x, upstream, direction = data(*shape), data(*shape, seed=1), data(*shape, seed=2)

    def derivatives(f, weights):
        """Output, gradient and Hessian-vector product in x and in the weights, by autograd."""
        inputs = [x.clone().requires_grad_(), *[w.clone().requires_grad_() for w in weights]]
        out = f(*inputs)
        grads = torch.autograd.grad((out.sin() * upstream).sum(), inputs, create_graph=True)
        slope = (grads[0] * direction).sum() + sum((g * g).sum() for g in grads[1:])
        curved = torch.autograd.grad(slope, inputs, allow_unused=True, materialize_grads=True)
        return [out, *grads, *curved]

    names = list(net.params)

    def ours(x, *weights):
        return net.apply({**net.buffers, **dict(zip(names, weights, strict=True))}, x)

    def torchs(x, *weights):
        fresh = copy.deepcopy(norm)
        for key, weight in zip(names, weights, strict=True):
            fresh._parameters[key] = weight
        return fresh(x)

    weights = list(net.params.values())
    for got, want in zip(derivatives(ours, weights), derivatives(torchs, weights), strict=True):
        same(got, want, 1e-10)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 5)])
def test_running_averages_move_as_torchs(shape):
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    norm = network(lambda: kind(4, momentum=0.3))
    ours = BatchNorm(4, "running", momentum=0.3).double()
    ours.load_state_dict(norm.state_dict(), strict=False)
    net = pure(nn.Sequential(ours))
    x = data(*shape)
    moved = net.track(net.params, net.buffers, x)
    before = norm.running_var.clone()
    norm.train()(x)
    same(moved["0.running_mean"], norm.running_mean)
    same(moved["0.running_var"], norm.running_var)
    assert (norm.running_var - before).abs().max() > 0.1
    same(net.buffers["0.running_var"], before)


def test_an_eval_mode_norm_is_frozen():
    net = pure(network(lambda: nn.Sequential(nn.BatchNorm1d(4))).eval())
    moved = net.track(net.params, net.buffers, data(6, 4))
    same(moved["0.running_mean"], net.buffers["0.running_mean"])
    same(moved["0.running_var"], net.buffers["0.running_var"])


def test_running_averages_of_a_deep_network_move_as_torchs():
    net = network(lambda: Conv4(3, filters=4, size=16, norm="running"))
    running = pure(net)
    x = data(5, 1, 16, 16)
    moved = running.track(running.params, running.buffers, x)
    # The layers above the first see what the running averages below made of the batch.
    plain = copy.deepcopy(running.module)
    hidden = x
    for i, layer in enumerate(plain.features):
        if isinstance(layer, BatchNorm):
            theirs = nn.BatchNorm2d(4).double()
            theirs.running_mean.copy_(layer.running_mean)
            theirs.running_var.copy_(layer.running_var)
            theirs.train()(hidden)
            same(moved[f"features.{i}.running_mean"], theirs.running_mean)
            same(moved[f"features.{i}.running_var"], theirs.running_var)
        hidden = layer(hidden)


def test_track_without_running_norms_changes_nothing():
    net = pure(network(lambda: Conv4(3, filters=4, size=16)))
    assert net.track(net.params, net.buffers, data(5, 1, 16, 16)) is net.buffers


def test_support_statistics_are_those_of_the_support_set():
    net = pure(network(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm(4, "support"))))
    support, query = data(6, 1, 5, 5), data(4, 1, 5, 5, seed=1)
    found = net.support_statistics(net.params, support)
    assert set(found) == {"1.support_mean", "1.support_var"}
    hidden = net.module[0](support)
    same(found["1.support_mean"].flatten(), hidden.mean((0, 2, 3)))
    same(found["1.support_var"].flatten(), hidden.var((0, 2, 3), unbiased=False))

    weights = {**net.params, **found}
    together = net.apply(weights, query)
    alone = torch.cat([net.apply(weights, one.unsqueeze(0)) for one in query])
    same(together, alone)
    without = net.apply(net.params, query)
    assert (together - without).abs().max() > 1e-2
    same(net.support_statistics(weights, query), net.support_statistics(net.params, query))


def test_support_statistics_are_free_of_other_norms():
    net = pure(network(lambda: Conv4(3, filters=4, size=16)))
    assert net.support_statistics(net.params, data(6, 1, 16, 16)) == {}


def test_a_parameter_may_be_called_support():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.support_encoder = nn.Linear(3, 4)
            self.norm = BatchNorm(4, "support")

        def forward(self, x):
            return self.norm(self.support_encoder(x))

    net = pure(network(Net))
    moved = {n: t + 1 for n, t in net.params.items()}
    x = data(6, 3)
    hidden = x @ moved["support_encoder.weight"].T + moved["support_encoder.bias"]
    same(net.support_statistics(moved, x)["norm.support_mean"].flatten(), hidden.mean(0))


@pytest.mark.parametrize("statistics", ["transductive", "support"])
def test_an_example_of_weight_two_is_two_examples(statistics):
    net = pure(network(lambda: nn.Sequential(BatchNorm(4, statistics))))
    x = data(5, 4, 3)
    twice = x[[0, 1, 1, 2, 3]]
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    weighted = {**net.params, **net.support_statistics(net.params, x, weight)}
    repeated = {**net.params, **net.support_statistics(net.params, twice)}
    assert len(weighted) == len(repeated) == (4 if statistics == "support" else 2)
    same(net.apply(weighted, x, weight)[:4], net.apply(repeated, twice)[[0, 1, 3, 4]])


def test_frozen_parameters_count_with_the_buffers():
    linear = nn.Linear(3, 2)
    linear.bias.requires_grad_(False)
    net = pure(nn.Sequential(linear, nn.BatchNorm1d(2)).eval())
    assert set(net.params) == {"0.weight", "1.weight", "1.bias"}
    assert set(net.buffers) == {"0.bias", "1.running_mean", "1.running_var"}


def test_a_layer_at_two_places_keeps_its_weights():
    norm, linear = nn.LayerNorm(3), nn.Linear(3, 3)
    shared = network(lambda: nn.Sequential(norm, linear, nn.Tanh(), norm, linear))
    net = pure(shared)
    assert isinstance(net.module[0], LayerNorm)
    assert net.module[0] is net.module[3]
    x = data(4, 3)
    net.apply({n: torch.zeros_like(t) for n, t in net.params.items()}, x)
    same(dict(net.module.named_parameters()), dict(shared.named_parameters()), 0)
    for value in (0.5, 2.0):
        weights = {n: torch.full_like(t, value) for n, t in net.params.items()}
        plain = copy.deepcopy(shared)
        nn.utils.vector_to_parameters(torch.full((18,), value).double(), plain.parameters())
        same(net.apply(weights, x), plain(x))


def test_a_norm_with_a_forward_of_its_own_keeps_it():
    class ChannelsLast(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    x = data(2, 4, 3, 3)
    for module in (network(lambda: ChannelsLast(4)), network(lambda: Activated(4)).eval()):
        net = pure(module)
        same(net.apply({**net.buffers, **net.params}, x), module(x))
    # In train mode it normalises by the batch, and its running averages are left out.
    module = network(lambda: Activated(4))
    net = pure(module)
    assert net.buffers == {}
    assert module.running_mean is not None
    for _ in range(2):
        same(net.apply(net.params, x), copy.deepcopy(module)(x))
    with net.evaluating():
        same(net.apply(net.params, x), copy.deepcopy(module)(x))


def test_the_module_itself_is_left_alone():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    net = pure(module)
    assert type(module[1]) is nn.BatchNorm1d
    before = copy.deepcopy(module.state_dict())
    net.apply({n: t + 1 for n, t in net.params.items()}, torch.randn(5, 3))
    same(module.state_dict(), before, 0)
    with torch.no_grad():
        module[0].weight.fill_(9.0)
    assert net.params["0.weight"].abs().max() < 1
