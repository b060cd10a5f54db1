"""Seeded dropout: uniform and independent bits, the same mask for the same seed however a
gradient is batched or repeated, and torch's own rates and scales."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.algorithms import MAML
from metalearn.algorithms.losses import cross_entropy
from metalearn.backbones import ResNet12, timm_model
from metalearn.backbones.resnet12 import DropBlock
from metalearn.errors import UsageError
from metalearn.functional import pure
from metalearn.functional.dropout import bernoulli, dropout_stream, fold, random_bits
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import sgd
from tests.tasks import apart, classification, generator, network, on


def seed(number: int) -> torch.Tensor:
    return torch.tensor(number)


def test_the_numbers_are_those_of_wellons_hash():
    """lowbias32 in Python's own integers; 0 is its fixed point."""

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    def code(n):
        return mix(mix((n + 0x9E3779B9) % 2**32) ^ (n >> 32) % 2**32)

    def folded(s, n):
        high = mix((s >> 32) % 2**32 ^ code(n))
        low = mix(s % 2**32 ^ high)
        return mix((high + low) % 2**32) // 2 * 2**32 + low

    for s in (0, 1, -1, 2**62 + 12345, -(2**63)):
        for n in (0, 5, 2**40 + 3):
            assert int(fold(seed(s), n)) == int(fold(seed(s), seed(n))) == folded(s, n)
    start = folded(9, 0) % 2**32
    want = [[mix(mix(start ^ code(i)) ^ code(j)) for j in range(4)] for i in range(3)]
    assert random_bits(seed(9), (3, 4)).tolist() == want


def test_bits_are_uniform():
    bits = random_bits(seed(3), (300, 400)).flatten()
    for shift in (0, 8, 16, 24):
        counts = torch.bincount(bits >> shift & 255, minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    assert stats.kstest(bits.double().numpy() / 2**32, "uniform").pvalue > 1e-4


def test_seeds_draws_and_places_are_independent():
    streams = [seed(n) for n in (0, 1, 2, -1, 2**32, 2**33)]
    streams += [fold(seed(0), n) for n in range(1, 5)] + [fold(seed(1), n) for n in range(1, 5)]
    drawn = torch.stack([bernoulli(s, 0.5, (256, 256)) for s in streams]).double() * 2 - 1
    flat = drawn.flatten(1)
    z = flat @ flat.T / flat.shape[1] ** 0.5
    assert (z - torch.diag(z.diag())).abs().max() < 4.5
    for moved in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 16), (16, 0), (0, 128)):
        rolled = torch.roll(drawn, moved, (1, 2)).flatten(1)
        assert ((flat * rolled).sum(1) / flat.shape[1] ** 0.5).abs().max() < 4.5


def test_seeds_do_not_collide():
    run = fold(seed(0), torch.arange(200))
    tasks = fold(fold(run[:, None], torch.arange(200)).flatten()[:, None], torch.arange(5))
    assert tasks.unique().numel() == tasks.numel() == 200_000
    assert tasks.min() >= 0


def test_padding_leaves_the_places_as_they_are():
    small, large = random_bits(seed(4), (3, 5, 2)), random_bits(seed(4), (7, 6, 4))
    assert torch.equal(large[:3, :5, :2], small)


class Drops(nn.Module):
    """`function` of a tensor of ones, in train mode."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def stochastic_depth(x):
    from torchvision.ops import stochastic_depth

    return stochastic_depth(x, 0.3, "row")


def drop_path(x):
    from timm.layers import drop_path

    return drop_path(x, 0.3, training=True)


@pytest.mark.parametrize(
    "layer, rate, ndim",
    [
        (nn.Dropout(0.3), 0.3, 4),
        (nn.Dropout(0.3, inplace=True), 0.3, 4),
        (nn.Dropout1d(0.3), 0.3, 2),
        (nn.Dropout2d(0.2), 0.2, 2),
        (Drops(lambda x: F.dropout(x, 0.6)), 0.6, 4),
        (Drops(lambda x: torch.dropout(x, 0.6, True)), 0.6, 4),
        (Drops(stochastic_depth), 0.3, 1),
        (Drops(drop_path), 0.3, 1),
    ],
)
def test_rate_scale_and_shape_are_torchs(layer, rate, ndim):
    net = pure(layer)
    shape = (40, 50, 6) if isinstance(layer, nn.Dropout1d) else (40, 50, 6, 5)
    x = torch.ones(shape, dtype=torch.float64)
    with dropout_stream(seed(1)):
        out = net.apply({}, x)
        assert torch.equal(net.apply({}, x), out)
        torch.testing.assert_close(net.apply({}, 3 * x), 3 * out, rtol=1e-14, atol=0)
    with dropout_stream(seed(2)):
        assert not torch.equal(net.apply({}, x), out)
    assert (x == 1).all()
    assert set(out.unique().tolist()) == {0.0, 1 / (1 - rate)}
    # One decision for each index of the first `ndim` dimensions.
    flat = out.reshape(*shape[:ndim], -1)
    assert (flat == flat[..., :1]).all()
    decided = flat[..., 0].numel()
    off = (flat[..., 0] == 0).double().mean() - rate
    assert abs(off) < 4.5 * (rate * (1 - rate) / decided) ** 0.5
    with dropout_stream(seed(1)), net.evaluating():
        if not isinstance(layer, Drops):
            assert torch.equal(net.apply({}, x), x)


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)])
def test_alpha_dropout_keeps_mean_and_variance(layer):
    net = pure(layer)
    x = torch.randn(400, 100, 3, generator=generator())
    with dropout_stream(seed(1)):
        out = net.apply({}, x)
    assert abs(out.mean()) < 0.03
    assert abs(out.var() - 1) < 0.05
    torch.manual_seed(0)
    theirs = F.alpha_dropout(torch.zeros(1000), 0.3, training=True).unique()
    with dropout_stream(seed(1)):
        ours = net.apply({}, torch.zeros(100, 100, 3)).unique()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rate, left", [(0.0, 1.0), (1.0, 0.0)])
def test_rates_zero_and_one(rate, left):
    with dropout_stream(seed(0)):
        assert (pure(nn.Dropout(rate)).apply({}, torch.ones(50, 50)) == left).all()
    assert bernoulli(seed(0), 1.0, (1000,)).all()
    assert not bernoulli(seed(0), 0.0, (1000,)).any()


def test_attention_weights_drop():
    net = pure(network(lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True)))
    x = torch.randn(3, 5, 4, generator=generator(), dtype=torch.float64)

    def output(number):
        with dropout_stream(seed(number)):
            return net.apply(net.params, x)

    assert torch.equal(output(1), output(1))
    assert not torch.allclose(output(1), output(2))
    alone = vmap(lambda s: _under(s, net, x))(torch.tensor([1, 2]))
    torch.testing.assert_close(alone, torch.stack([output(1), output(2)]), rtol=1e-12, atol=1e-13)


def _under(s, net, x):
    with dropout_stream(s):
        return net.apply(net.params, x)


def test_layers_of_one_network_draw_for_themselves():
    net = pure(nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5)))
    with dropout_stream(seed(0)):
        out = net.apply({}, torch.ones(200, 200))
    assert abs((out != 0).double().mean() - 0.25) < 0.02  # 0.5, were the masks the same


def test_outside_of_a_stream_dropout_is_torchs_own():
    net, x = pure(nn.Dropout(0.5)), torch.ones(20, 20)
    torch.manual_seed(5)
    ours = net.apply({}, x)
    torch.manual_seed(5)
    assert torch.equal(ours, F.dropout(x, 0.5))
    state = torch.get_rng_state()
    with dropout_stream(seed(0)):
        net.apply({}, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_repeat_is_named():
    net = pure(Drops(lambda x: x + torch.poisson(x)))
    assert net.apply({}, torch.ones(3)).shape == (3,)
    with dropout_stream(seed(0)), pytest.raises(UsageError, match="torch.poisson cannot repeat"):
        net.apply({}, torch.ones(3))
    net = pure(nn.RReLU().eval())
    with dropout_stream(seed(0)):
        assert net.apply({}, torch.ones(3)).shape == (3,)


def test_it_can_be_traced():
    net = pure(network(lambda: nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5))))

    def slope(params, x, s):
        with dropout_stream(s):
            return grad(lambda p: net.apply(p, x).square().sum())(params)

    x = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    graph = make_fx(slope)(net.params, x, seed(1))
    for number in (1, 2):
        want = slope(net.params, x, seed(number))
        torch.testing.assert_close(graph(net.params, x, seed(number)), want, rtol=1e-12, atol=0)


def test_drop_block_drops_squares():
    x = torch.ones(200, 8, 10, 10)
    net = pure(DropBlock(0.2, 3))
    with dropout_stream(seed(0)):
        out = net.apply({}, x)
    dropped = (out == 0).float()
    assert abs(dropped.mean() - 0.2) < 0.03
    # Every dropped position lies in a 3x3 square of dropped positions.
    squares = 1 - F.max_pool2d(1 - dropped, 3, 1)
    covered = F.max_pool2d(F.pad(squares, [2] * 4), 3, 1)
    assert torch.equal(covered, dropped)
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.ones(200))
    with net.evaluating(), dropout_stream(seed(0)):
        assert torch.equal(net.apply({}, x), x)


@dataclass(frozen=True, eq=False)
class Noisy(MAML):
    """MAML with a seed of its own for each task (its labels carry it) and loss, so that nothing
    depends on how the engine derives such seeds. Here the inner steps of a task share one."""

    def _seed(self, batch, part):
        return fold(fold(torch.zeros((), dtype=torch.int64), batch.y[-1] // 100), part)

    def _labels(self, batch):
        return batch._replace(y=batch.y % 100)

    def inner_loss(self, meta, fast, given, step):
        with dropout_stream(self._seed(given.support, 0)):
            labelled = given._replace(support=self._labels(given.support))
            return super().inner_loss(meta, fast, labelled, step)

    def outer_loss(self, meta, fast, query):
        with dropout_stream(self._seed(query, 1)):
            return super().outer_loss(meta, fast, self._labels(query))


def tagged(episodes):
    """Labels that carry the number of their task, for `Noisy`."""

    def tag(batch):
        tasks = torch.arange(len(batch.y)).unsqueeze(1)
        return batch._replace(y=batch.y + 100 * tasks)

    return type(episodes)(*(tag(batch) for batch in episodes[:2]))


@pytest.mark.parametrize(
    "build, shape",
    [
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.4), nn.Linear(8, 3)),
            8,
        ),
        (lambda: ResNet12(3, 1, 16, (4, 4, 4, 4), drop_rate=0.2, norm="none"), 16),
        (
            lambda: timm_model(
                "vit_tiny_patch16_224",
                3,
                1,
                8,
                options={
                    **{"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2},
                    **{"attn_drop_rate": 0.3, "proj_drop_rate": 0.3, "drop_path_rate": 0.3},
                },
            ),
            8,
        ),
    ],
)
def test_strategies_and_batchings_agree(build, shape):
    episodes = tagged(classification(tasks=4, shots=2, queries=3, shape=(1, shape, shape)))
    net = network(build)
    # Not marked as a loss of classes, which are not numbered from 0 on here.
    algo = Noisy(net, steps=2, rule=sgd(0.1), loss=lambda y, batch: cross_entropy(y, batch))
    meta = algo.init()
    want, _ = on(Unroll(), "loop")(algo, meta, episodes)
    again, _ = on(Unroll(), "loop")(algo, meta, episodes)
    assert apart(again, want) == 0
    for batching in ("loop", "vmap", 3):
        for strategy in (Unroll, Adjoint):
            got, _ = on(strategy(), batching)(algo, meta, episodes)
            assert apart(got, want) < 1e-10
    # Against the same strategy without dropout, and with other seeds.
    assert apart(Unroll()(MAML(net.eval(), 2, sgd(0.1)), meta, _plain(episodes))[0], want) > 1e-2


def _plain(episodes):
    return type(episodes)(*(batch._replace(y=batch.y % 100) for batch in episodes[:2]))


def test_tasks_have_masks_of_their_own():
    net = pure(nn.Dropout(0.5))
    x = torch.ones(6, 100)
    seeds = fold(seed(0), torch.arange(4))

    def one(s):
        with dropout_stream(s):
            return net.apply({}, x)

    together = vmap(one)(seeds)
    assert torch.equal(together, torch.stack([one(s) for s in seeds]))
    assert len({tuple(out.flatten().tolist()) for out in together}) == 4
