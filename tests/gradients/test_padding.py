"""Tasks of unequal size in one batch: padding of weight 0 changes no gradient and no metric."""

import pytest
import torch
from torch import nn

from metalearn import Batch, Episodes
from metalearn.algorithms import ANIL, MAML, R2D2, ProtoMAML, ProtoNet
from metalearn.algorithms import Reptile as Reptile
from metalearn.algorithms.losses import focal, label_smoothed, mean_squared
from metalearn.backbones import Conv4
from metalearn.gradients import Adjoint, Checkpointed, Displacement, Unroll
from metalearn.inner import lslr, sgd
from tests.spread import spread
from tests.tasks import apart, classification, generator, network, on, randomised

EXACT = {"unroll": Unroll, "adjoint": Adjoint, "checkpointed": Checkpointed}

SIZES = [(3, 2, 6), (2, 3, 4), (3, 1, 5)]
"""Ways, shots and queries of each task."""


NAMES = ("maml", "anil", "protonet", "protonet-cosine", "proto_maml", "r2d2", "r2d2-focal")
NAMES += ("proto_maml-smoothed", "proto_maml-squared")


def unequal() -> list[Episodes]:
    """Batches of one task each."""
    return [
        classification(1, ways, shots, queries, seed=t)
        for t, (ways, shots, queries) in enumerate(SIZES)
    ]


def padded(batches: list[Batch], shuffle: bool) -> Batch:
    """One batch of all; the padding is loud noise, not zeros, and may stand between."""
    g = generator(99)
    size = max(batch.x.shape[1] for batch in batches)
    rows = []
    for batch in batches:
        count = batch.x.shape[1]
        noise = 50 * torch.randn(size - count, 1, 16, 16, generator=g, dtype=torch.float64)
        x = torch.cat([batch.x[0], noise])
        y = torch.cat([batch.y[0], torch.randint(3, (size - count,), generator=g)])
        weight = (torch.arange(size) < count).to(torch.float64)
        order = torch.randperm(size, generator=g) if shuffle else torch.arange(size)
        order[order < count] = torch.arange(count)
        rows.append(Batch(x[order], y[order], weight[order]))
    return Batch(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def together(tasks: list[Episodes], shuffle: bool) -> Episodes:
    return Episodes(
        padded([t.support for t in tasks], shuffle), padded([t.query for t in tasks], shuffle)
    )


def build(name: str, norm: str):
    """The algorithm and its meta, with rates that differ by layer and step."""
    ways = 3 if name in ("maml", "anil") else None
    net = network(lambda: Conv4(ways, filters=4, size=16, norm=norm))
    algo = {
        "maml": lambda: MAML(net, steps=2, rule=lslr(0.1)),
        "anil": lambda: ANIL(net, steps=2, rule=lslr(0.1)),
        "protonet": lambda: ProtoNet(net, learn_temperature=True),
        "protonet-cosine": lambda: ProtoNet(net, "cosine", temperature=0.1),
        "proto_maml": lambda: ProtoMAML(net, steps=2, rule=lslr(0.1)),
        "proto_maml-smoothed": lambda: ProtoMAML(net, 2, lslr(0.1), label_smoothed),
        "proto_maml-squared": lambda: ProtoMAML(net, 2, lslr(0.1), mean_squared),
        "r2d2": lambda: R2D2(net),
        "r2d2-focal": lambda: R2D2(net, loss=focal),
    }[name]()
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    return algo, meta


@pytest.mark.parametrize(
    "kind, name, norm",
    spread(EXACT, NAMES, ["transductive", "support", "running", "group"], share=7),
)
def test_padding_is_left_out(kind, name, norm):
    strategy, (algo, meta) = EXACT[kind], build(name, norm)
    tasks = unequal()
    alone = [on(strategy(), "loop")(algo, meta, t) for t in tasks]
    want = {
        part: {n: sum(g[part][n] for g, _ in alone) / len(alone) for n in meta[part]}
        for part in ("init", "hyper")
    }
    for shuffle in (False, True):
        for batching in ("loop", 2):
            got, metrics = on(strategy(), batching)(algo, meta, together(tasks, shuffle))
            assert apart(got, want) < 1e-12
            for key in ("loss", "accuracy"):
                each = torch.cat([m[key] for _, m in alone])
                torch.testing.assert_close(metrics[key], each, rtol=1e-12, atol=0)


class Steep(nn.Module):
    """Of zeros it makes no number: 0 / 0, as what layers of norm do where two examples agree."""

    def forward(self, x):
        return x / x.abs().sum((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("norm", ["transductive", "running", "support"])
def test_padding_of_zeros_may_be_what_a_network_cannot_take(norm):
    net = network(lambda: nn.Sequential(Steep(), Conv4(3, filters=4, size=16, norm=norm)))
    algo, tasks = MAML(net, 1, sgd(0.1)), unequal()
    noisy = together(tasks, False)
    zero = noisy.map(lambda t: t)
    for batch in (zero.support, zero.query):
        batch.x[batch.weight == 0] = 0
    meta = algo.init()
    for batching in ("loop", "vmap"):
        want, known = on(Adjoint(), batching)(algo, meta, noisy)
        got, metrics = on(Adjoint(), batching)(algo, meta, zero)
        assert apart(got, want) < 1e-12
        torch.testing.assert_close(metrics, known, rtol=1e-12, atol=0)
    x, _, weight = zero.support.map(lambda t: t.flatten(0, 1))
    tracked = algo.net.track(meta["init"], meta["buffers"], x, weight)
    assert all(t.isfinite().all() for t in tracked.values())


@pytest.mark.parametrize("batch_size", [1, 4, 8])
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Displacement])
def test_padding_has_no_turn_in_inner_minibatches(strategy, batch_size):
    net = network(lambda: Conv4(3, filters=4, size=16, norm="support"))
    build = Reptile if strategy is Displacement else MAML
    algo = build(net, steps=4, rule=sgd(0.1, batch_size=batch_size))
    meta, tasks = algo.init(), unequal()
    alone = [on(strategy(), "loop")(algo, meta, t)[0]["init"] for t in tasks]
    want = {"init": {n: sum(g[n] for g in alone) / 3 for n in meta["init"]}, "hyper": {}}
    for batching in ("loop", "vmap"):
        got, _ = on(strategy(), batching)(algo, meta, together(tasks, True))
        assert apart(got, want) < 1e-12


def test_padding_would_matter_without_weights():
    algo, meta = build("maml", "transductive")
    episodes = together(unequal(), False)
    blind = Episodes(*(batch._replace(weight=None) for batch in episodes[:2]))
    got, _ = Unroll()(algo, meta, episodes)
    assert apart(got, Unroll()(algo, meta, blind)[0]) > 1e-2
