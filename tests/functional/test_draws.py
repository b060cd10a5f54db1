"""What a forward draws at random: of torch's distributions, the same for the same seed, one task's
own under `vmap`, and never from torch's generator."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.func import vmap

from metalearn.algorithms import MAML
from metalearn.functional import pure
from metalearn.functional.dropout import dropout_stream
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import sgd
from tests.tasks import apart, classification, network, on

N = 4000
HALF = torch.full((N,), 0.3)
aten = torch.ops.aten
DRAWS = {
    "rand": (lambda x: torch.rand(N), stats.uniform().cdf),
    "rand of a shape": (lambda x: torch.rand((N, 1), dtype=torch.float64), stats.uniform().cdf),
    "rand_like": (torch.rand_like, stats.uniform().cdf),
    "aten.rand": (lambda x: aten.rand([N]), stats.uniform().cdf),
    "uniform_": (lambda x: torch.empty(N).uniform_(-1, 3), stats.uniform(-1, 4).cdf),
    "aten.uniform_": (lambda x: aten.uniform_(torch.empty(N), 0.0, 2.0), stats.uniform(0, 2).cdf),
    "randn": (lambda x: torch.randn(N), stats.norm().cdf),
    "randn_like": (torch.randn_like, stats.norm().cdf),
    "normal": (lambda x: torch.normal(1.0, 2.0, (N,)), stats.norm(1, 2).cdf),
    "normal of tensors": (lambda x: torch.normal(x, 3 * torch.ones(1)), stats.norm(0, 3).cdf),
    "normal_": (lambda x: torch.empty(N).normal_(1, 3), stats.norm(1, 3).cdf),
    "exponential_": (lambda x: torch.empty(N).exponential_(2), stats.expon(scale=0.5).cdf),
    "randint": (lambda x: torch.randint(2, 6, (N,)), (2, 6)),
    "randint below": (lambda x: torch.randint(4, (N,)), (0, 4)),
    "randint by name": (lambda x: torch.randint(high=3, size=(N,)), (0, 3)),
    "randperm": (lambda x: torch.randperm(N), None),
    "bernoulli": (lambda x: torch.bernoulli(HALF), 0.3),
    "bernoulli method": (lambda x: HALF.bernoulli(), 0.3),
    "bernoulli_": (lambda x: torch.empty(N).bernoulli_(0.3), 0.3),
    "aten.bernoulli_": (lambda x: aten.bernoulli_(torch.empty(N), 0.3), 0.3),
    "aten.dropout": (lambda x: 0.7 * aten.dropout(x + 1, 0.3, True), 0.7),
    "aten.dropout.default": (lambda x: 0.7 * aten.dropout.default(x + 1, 0.3, True), 0.7),
    "native_dropout": (lambda x: 0.7 * torch.native_dropout(x + 1, 0.3, True)[0], 0.7),
    "gumbel_softmax": (
        lambda x: F.gumbel_softmax(torch.tensor([0.3, 0.7]).log().expand(N, 2), hard=True)[:, 0],
        0.3,
    ),
}


class Draws(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", DRAWS)
def test_the_distribution_is_torchs_and_follows_from_the_seed(name):
    function, law = DRAWS[name]
    net, x = pure(Draws(function)), torch.zeros(N)

    def drawn(seed: int) -> torch.Tensor:
        with dropout_stream(torch.tensor(seed)):
            return net.apply({}, x).double().flatten()

    before = torch.get_rng_state()
    found = drawn(1)
    assert torch.equal(drawn(1), found) and not torch.equal(drawn(2), found)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    plain = function(x)
    if law is None:
        assert torch.equal(found.sort().values, torch.arange(N).double())
    elif isinstance(law, float):
        torch.testing.assert_close(found.unique(), plain.double().unique())
        assert abs(found.mean() - law) < 4.5 * (law * (1 - law) / N) ** 0.5
    elif isinstance(law, tuple):
        counts = torch.bincount(found.long())[law[0] :]
        assert found.min() == law[0] and found.max() == law[1] - 1
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    else:
        assert stats.kstest(found.numpy(), law).pvalue > 1e-4
    assert net.apply({}, x).dtype == plain.dtype


def test_one_generator_of_its_own_is_left_alone():
    net = pure(Draws(lambda x: torch.rand(3, generator=torch.Generator().manual_seed(5))))
    with dropout_stream(torch.tensor(1)):
        found = net.apply({}, torch.zeros(3))
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(5)))


def drop_path(x: torch.Tensor) -> torch.Tensor:
    """As transformers writes it."""
    noise = 0.7 + torch.rand((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device)
    noise.floor_()
    return x.div(0.7) * noise


@pytest.mark.parametrize(
    "function",
    [
        drop_path,
        lambda x: aten.dropout(x, 0.3, True),
        lambda x: torch.native_dropout(x, 0.3, True)[0],
        lambda x: x + 0.1 * torch.randn_like(x),
        lambda x: x[:, torch.randperm(x.shape[1])],
    ],
)
def test_strategies_and_batchings_draw_the_same(function):
    layers = lambda: nn.Sequential(nn.Linear(4, 8), Draws(function), nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
    algo = MAML(network(layers), 3, sgd(0.1))
    episodes = classification(tasks=2, shots=1, queries=3, shape=(4,))

    def drawn(strategy, batching="loop", seed=3):
        torch.manual_seed(seed)
        return on(strategy, batching)(algo, algo.init(), episodes)[0]

    want = drawn(Unroll())
    for strategy, batching in ((Adjoint(), "loop"), (Checkpointed(), "loop"), (Adjoint(), "vmap")):
        assert apart(drawn(strategy, batching), want) < 1e-10
    assert apart(drawn(Unroll(), seed=4), want) > 1e-3


def test_tasks_under_vmap_draw_for_themselves():
    net, x = pure(Draws(drop_path)), torch.ones(50, 2)

    def one(seed: torch.Tensor) -> torch.Tensor:
        with dropout_stream(seed):
            return net.apply({}, x)

    seeds = torch.tensor([1, 2])
    together = vmap(one)(seeds)
    assert torch.equal(together, torch.stack([one(s) for s in seeds]))
    assert not torch.equal(together[0], together[1])
