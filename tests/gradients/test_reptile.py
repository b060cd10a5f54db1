"""Reptile's direction is theta minus the mean end point of torch.optim.SGD."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import gradients
from metalearn.algorithms import MAML, Reptile
from metalearn.backbones import Conv4
from metalearn.errors import UsageError
from metalearn.inner import lslr, sgd
from tests.gradients import reference
from tests.tasks import classification, distance, network, on


@pytest.mark.parametrize("batching", ["loop", "vmap", 2, "vmap+im2col"])
@pytest.mark.parametrize("batch_size", [None, 4, 5])
def test_direction(batching, batch_size):
    net = network(lambda: Conv4(3, filters=4, size=16))
    plain = reference.PlainConv4("transductive", "pool", 3, 4).double()
    plain.load_state_dict(net.state_dict())
    episodes = classification(shots=2)
    steps = 3
    ends, losses = [], []
    for x, y, query_x, query_y in zip(*episodes.support[:2], *episodes.query[:2], strict=True):
        worker = copy.deepcopy(plain)
        optimizer = torch.optim.SGD(worker.parameters(), lr=0.1)
        for step in range(steps):
            size = len(x) if batch_size is None else batch_size
            rows = [(step * size + i) % len(x) for i in range(size)]
            optimizer.zero_grad()
            F.cross_entropy(worker(x[rows]), y[rows]).backward()
            optimizer.step()
        ends.append({n: p.detach() for n, p in worker.named_parameters()})
        losses.append(F.cross_entropy(worker(query_x), query_y).detach())
    want = {
        n: p.detach() - torch.stack([end[n] for end in ends]).mean(0)
        for n, p in plain.named_parameters()
    }

    algo = Reptile(net, steps=steps, rule=sgd(0.1, batch_size=batch_size))
    got, metrics = on(gradients.Displacement(), batching)(algo, algo.init(), episodes)
    assert distance(got["init"], want) < 1e-10
    assert got["hyper"] == {}
    torch.testing.assert_close(metrics["loss"], torch.stack(losses), rtol=1e-10, atol=0)


def test_learned_rates_are_refused():
    algo = MAML(network(lambda: nn.Linear(4, 3)), rule=lslr(0.1), kinds=("displacement",))
    with pytest.raises(UsageError, match="use inner=sgd"):
        gradients.Displacement()(algo, algo.init(), classification(shape=(4,)))


def test_no_steps_are_refused():
    algo = Reptile(network(lambda: nn.Linear(4, 3)), steps=0)
    with pytest.raises(UsageError, match="needs algorithm.steps of 1 or more"):
        gradients.Displacement()(algo, algo.init(), classification(shape=(4,)))
