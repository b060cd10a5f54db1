"""The meta-gradient equals that of learn2learn's MAML and of higher, in float32 to 1e-5."""

import contextlib
import importlib
import io
import warnings

import pytest
import torch
import torch.nn.functional as F

from metalearn.algorithms import MAML
from metalearn.gradients import Adjoint, FirstOrder, Unroll
from metalearn.inner import sgd
from tests.gradients import reference
from tests.tasks import apart, classification, network

RATE, STEPS = 0.1, 3


def quietly_imported(name: str):
    """The peer, without gym's banner and the warnings of its own import."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.importorskip(name)
            return importlib.import_module(name)


def conv4() -> torch.nn.Module:
    """Plain layers, nn.BatchNorm2d in train mode without running averages."""
    plain = reference.PlainConv4("transductive", "pool", 5, 8)
    return torch.nn.Sequential(*plain.features, torch.nn.Flatten(), plain.head)


def problem():
    return network(conv4, dtype=torch.float32), classification(
        tasks=2, ways=5, shots=1, queries=10, dtype=torch.float32
    )


def tasks(episodes):
    return zip(*episodes.support[:2], *episodes.query[:2], strict=True)


def of_peer(net, episodes) -> dict:
    grads = {n: p.grad / len(episodes.support.x) for n, p in net.named_parameters()}
    return {"init": grads, "hyper": {}}


def learn2learn_gradient(net, episodes, first_order: bool) -> dict:
    maml = quietly_imported("learn2learn").algorithms.MAML(net, lr=RATE, first_order=first_order)
    for x, y, query_x, query_y in tasks(episodes):
        learner = maml.clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(x), y))
        F.cross_entropy(learner(query_x), query_y).backward()
    return of_peer(net, episodes)


def higher_gradient(net, episodes, first_order: bool) -> dict:
    higher = quietly_imported("higher")
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for x, y, query_x, query_y in tasks(episodes):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, inner):
            for _ in range(STEPS):
                loss = F.cross_entropy(fast(x), y)
                inner.step(loss, grad_callback=detached if first_order else None)
            F.cross_entropy(fast(query_x), query_y).backward()
    return of_peer(net, episodes)


def detached(grads):
    return [g.detach() for g in grads]


@pytest.mark.parametrize("peer", [learn2learn_gradient, higher_gradient])
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, FirstOrder])
def test_same_gradient(peer, strategy):
    net, episodes = problem()
    want = peer(net, episodes, first_order=strategy is FirstOrder)
    algo = MAML(net, steps=STEPS, rule=sgd(RATE))
    for batching in ("loop", "vmap"):
        got, _ = strategy(batching=batching)(algo, algo.init(), episodes)
        assert apart(got, want) < 1e-5
