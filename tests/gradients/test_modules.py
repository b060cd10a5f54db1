"""Modules that users bring: torch's own norms, tied weights, frozen weights, shared layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import metalearn
from metalearn.algorithms import ANIL, MAML
from metalearn.gradients import Adjoint, FirstOrder, Unroll
from metalearn.inner import meta_sgd, sgd
from tests.gradients import reference
from tests.tasks import apart, classification, distance, network, on, randomised


def conv(*norm: nn.Module) -> nn.Module:
    """One convolution, the norm, and a head that sees every position."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), *norm, nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)
    )


class Tied(nn.Module):
    """One matrix that encodes and, transposed, decodes; one norm used at two places."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(64, 6, bias=False)
        self.mix = nn.Linear(6, 6)
        self.again = self.mix
        self.first = self.second = nn.LayerNorm(6)
        self.decode = nn.Linear(6, 64, bias=False)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().T.clone())
        self.mirror = nn.Linear(6, 6)
        self.mirror.weight = self.mix.weight
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        h = self.first(self.encode(x.flatten(1)))
        h = self.mirror(self.again(torch.tanh(self.mix(h))))
        return self.head(self.decode(self.second(h)))


class Frozen(nn.Module):
    """A fixed first layer; the head's bias is fixed too."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)
        self.norm.weight.requires_grad_(False)
        self.head = nn.Linear(8, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(F.softplus(self.norm(self.body(x.flatten(1)))))


MODULES = {
    "batch": lambda: conv(nn.BatchNorm2d(4, track_running_stats=False)),
    "batch-eval": lambda: conv(nn.BatchNorm2d(4)).eval(),
    "batch-no-affine": lambda: conv(nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
    "layer": lambda: conv(nn.LayerNorm([4, 3, 3], eps=1e-3)),
    "layer-no-affine": lambda: conv(nn.LayerNorm([3, 3], elementwise_affine=False)),
    "layer-no-bias": lambda: conv(nn.LayerNorm([3, 3], bias=False)),
    "instance": lambda: conv(nn.InstanceNorm2d(4)),
    "instance-affine": lambda: conv(nn.InstanceNorm2d(4, affine=True)),
    "group": lambda: conv(nn.GroupNorm(2, 4)),
    "rms": lambda: conv(nn.RMSNorm([3, 3])),
    "tied": Tied,
    "frozen": Frozen,
}


def fit(build):
    """8x8 images, and the network with its own convolution sized to them."""
    return classification(shape=(1, 8, 8)), network(build)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, FirstOrder])
def test_agrees_with_the_plain_loop(strategy, name):
    episodes, net = fit(MODULES[name])
    algo = MAML(net, steps=2, rule=meta_sgd(0.1))
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    second_order = strategy is not FirstOrder
    want = reference.meta_gradient(
        net, meta["hyper"], episodes, 2, rates=reference.per_weight, second_order=second_order
    )
    for batching in ("loop", "vmap", 2):
        got, _ = on(strategy(), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10


@pytest.mark.parametrize("name", MODULES)
def test_float32_is_close_to_float64(name):
    episodes, net = fit(MODULES[name])
    found = []
    for dtype in (torch.float64, torch.float32):
        cast = net.to(dtype)
        few = episodes.map(lambda t, dtype=dtype: t.to(dtype) if t.is_floating_point() else t)
        algo = MAML(cast, steps=2, rule=sgd(0.1))
        found.append(Adjoint()(algo, algo.init(), few)[0]["init"])
    wide, single = found
    assert distance({n: g.double() for n, g in single.items()}, wide) < 1e-4


def test_train_mode_batch_norm_that_tracks():
    episodes, net = fit(lambda: conv(nn.BatchNorm2d(4)))
    plain = conv(nn.BatchNorm2d(4, track_running_stats=False)).double()
    plain.load_state_dict(net.state_dict(), strict=False)
    before = {n: b.clone() for n, b in net.named_buffers()}
    want = reference.meta_gradient(plain, {}, episodes, 2)
    for batching in ("loop", "vmap"):
        algo = MAML(net, steps=2, rule=sgd(reference.RATE))
        got, _ = on(Adjoint(), batching)(algo, algo.init(), episodes)
        assert apart(got, want) < 1e-10
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_frozen_weights_are_not_learned():
    episodes, net = fit(Frozen)
    algo = ANIL(net, steps=2, rule=sgd(0.1))
    meta = algo.init()
    assert set(meta["init"]) == {"norm.bias", "head.weight"}
    assert set(algo.adapting) == {"head.weight"}
    got, _ = Unroll()(algo, meta, episodes)
    assert set(got["init"]) == {"norm.bias", "head.weight"}


def test_gradient_of_vmapped_loss_is_wrong_where_ours_is_right():
    episodes, net = fit(MODULES["batch"])
    init = {n: p.detach() for n, p in net.named_parameters()}

    def one_task(init, x, y, query_x, query_y):
        fast = init
        for _ in range(2):
            grads = torch.func.grad(lambda w: F.cross_entropy(functional_call(net, w, (x,)), y))(
                fast
            )
            fast = {n: w - reference.RATE * grads[n] for n, w in fast.items()}
        return F.cross_entropy(functional_call(net, fast, (query_x,)), query_y)

    def public_recipe(init):
        parts = [t for batch in episodes[:2] for t in batch[:2]]
        return torch.func.vmap(one_task, in_dims=(None, 0, 0, 0, 0))(init, *parts).mean()

    want = reference.meta_gradient(net, {}, episodes, 2)
    trap = torch.func.grad(public_recipe)(init)
    assert distance(trap, want["init"]) > 1e-6

    algo = MAML(net, steps=2, rule=sgd(reference.RATE))
    for strategy in (on(Unroll(), "vmap"), on(Adjoint(), "vmap")):
        got, _ = strategy(algo, algo.init(), episodes)
        assert apart(got, want) < 1e-12

    def whole_batch(init):
        meta = {**algo.init(), "init": init}
        parts = [t for batch in episodes[:2] for t in batch[:2]]

        def task(x, y, query_x, query_y):
            fast = metalearn.adapt(algo, meta, metalearn.Batch(x, y))
            return algo.outer_loss(meta, fast, metalearn.Batch(query_x, query_y))[0]

        return torch.func.vmap(task)(*parts).mean()

    assert distance(torch.func.grad(whole_batch)(init), want["init"]) < 1e-12
