"""Recurrent layers and bags of embeddings: torch's own outputs, the meta-gradient of a plain loop,
in both precisions, under every way of running; masks between layers that repeat."""

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from metalearn import evaluate
from metalearn.algorithms import MAML
from metalearn.algorithms.reptile import Reptile
from metalearn.functional.overrides import Exact
from metalearn.gradients import (
    Adjoint,
    Checkpointed,
    Displacement,
    FirstOrder,
    Implicit,
    Truncated,
    Unroll,
)
from metalearn.inner import sgd
from tests.gradients import reference
from tests.tasks import apart, classification, distance, generator, network, on


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(), dtype=torch.float64)


def flat(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, rnn.PackedSequence):
        return [value.data]
    return [t for part in value for t in flat(part)]


LAYERS = {
    "lstm": lambda: nn.LSTM(4, 5, batch_first=True),
    "lstm-two-ways": lambda: nn.LSTM(4, 5, 2, bidirectional=True),
    "lstm-projected": lambda: nn.LSTM(4, 5, 2, proj_size=3, bidirectional=True, batch_first=True),
    "lstm-projected-no-bias": lambda: nn.LSTM(4, 5, proj_size=3, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(4, 5, 2, bidirectional=True, batch_first=True),
    "gru-no-bias": lambda: nn.GRU(4, 5, bias=False),
    "rnn": lambda: nn.RNN(4, 5, 2, batch_first=True),
    "rnn-relu": lambda: nn.RNN(4, 5, nonlinearity="relu", bidirectional=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_torchs(name):
    layer = network(LAYERS[name])
    x = randn(3, 6, 4)
    packed = rnn.pack_padded_sequence(x, torch.tensor([2, 6, 4]), True, enforce_sorted=False)
    for given in (x, x[0], packed):
        with Exact():
            got = layer(given)
        torch.testing.assert_close(flat(got), flat(layer(given)), rtol=1e-12, atol=1e-14)
    state = flat(layer(x)[1])
    start = tuple(s.cos() for s in state) if len(state) > 1 else state[0].cos()
    with Exact():
        got = layer(x, start)
    torch.testing.assert_close(flat(got), flat(layer(x, start)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_equal_torchs(kind):
    cell, x = network(lambda: kind(4, 5)), randn(3, 4)
    with Exact():
        got = cell(x)
    torch.testing.assert_close(flat(got), flat(cell(x)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_equal_torchs(mode):
    bags = torch.tensor([[1, 2, 2], [0, 0, 0], [0, 3, 1]])
    for given in (
        {"input": bags},
        {"input": bags.flatten(), "offsets": torch.tensor([0, 0, 2, 7])},
        {"input": bags.flatten()[:7], "offsets": torch.tensor([0, 3, 3, 7]), "last": True},
    ):
        last = given.pop("last", False)
        layer = network(
            lambda last=last: nn.EmbeddingBag(
                4, 3, mode=mode, padding_idx=0, include_last_offset=last
            )
        )
        with Exact():
            got = layer(**given)
        torch.testing.assert_close(got, layer(**given), rtol=1e-12, atol=1e-14)
    if mode == "sum":
        layer, weight = network(lambda: nn.EmbeddingBag(4, 3, mode="sum")), randn(3, 3)
        with Exact():
            got = layer(bags, per_sample_weights=weight)
        torch.testing.assert_close(got, layer(bags, per_sample_weights=weight))


class Sequences(nn.Module):
    """The mean over the steps of a recurrent layer."""

    def __init__(self, rnn: nn.Module, width: int):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h, state = x.new_zeros(len(x), 4), None
        for step in x.unbind(1):
            state = self.lstm(step, state)
            h = self.gru(state[0], h)
        return self.head(h)


class Bag(nn.Module):
    def __init__(self, mode: str):
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 3)

    def forward(self, x):
        ids = (x.detach().abs() * 3).long().clamp(0, 8).flatten(1)
        return self.head(torch.tanh(self.embed(ids)))


class PlainBag(Bag):
    """The same as a mean of embeddings."""

    def forward(self, x):
        ids = (x.detach().abs() * 3).long().clamp(0, 8).flatten(1)
        return self.head(torch.tanh(self.embed.weight[ids].mean(1)))


BATCH_FIRST = {"batch_first": True}
NETWORKS = {
    "lstm": lambda: Sequences(nn.LSTM(4, 5, 2, bidirectional=True, **BATCH_FIRST), 10),
    "projected": lambda: Sequences(nn.LSTM(4, 5, proj_size=3, **BATCH_FIRST), 3),
    "gru": lambda: Sequences(nn.GRU(4, 5, 2, **BATCH_FIRST), 5),
    "rnn": lambda: Sequences(nn.RNN(4, 5, **BATCH_FIRST), 5),
    "cells": Cells,
    "bag": lambda: Bag("mean"),
}


def sentences(dtype=torch.float64):
    return classification(tasks=2, shots=1, queries=3, shape=(3, 4), dtype=dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_plain_loop_in_both_precisions(name):
    net, episodes = network(NETWORKS[name]), sentences()
    plain = net
    if name == "bag":
        plain = network(lambda: PlainBag("mean"))
        plain.load_state_dict(net.state_dict())
    want = reference.meta_gradient(plain, {}, episodes, 3)
    algo = MAML(net, steps=3, rule=sgd(reference.RATE))
    meta = algo.init()
    for batching in ("loop", "vmap", "loop+forward_over_reverse"):
        assert apart(on(Adjoint(), batching)(algo, meta, episodes)[0], want) < 1e-10
    assert apart(Checkpointed()(algo, meta, episodes)[0], want) < 1e-10
    single = MAML(net.float(), steps=3, rule=sgd(reference.RATE))
    few, meta = sentences(torch.float32), single.init()
    for strategy in (Unroll(), Adjoint(), Checkpointed()):
        got = strategy(single, meta, few)[0]["init"]
        assert distance({n: g.double() for n, g in got.items()}, want["init"]) < 1e-4


def test_the_other_strategies_and_evaluation_run_in_float32():
    net, few = network(NETWORKS["lstm"], dtype=torch.float32), sentences(torch.float32)
    wide = network(NETWORKS["lstm"])
    for strategy, build in (
        (FirstOrder(), lambda net: MAML(net, 2, sgd(0.1))),
        (Truncated(1), lambda net: MAML(net, 2, sgd(0.1))),
        (Implicit(), lambda net: MAML(net, 2, sgd(0.1), proximal=2.0)),
        (Displacement(), lambda net: Reptile(net, 2, sgd(0.1))),
    ):
        algo, double = build(net), build(wide)
        got = strategy(algo, algo.init(), few)[0]["init"]
        want = strategy(double, double.init(), sentences())[0]["init"]
        assert distance({n: g.double() for n, g in got.items()}, want) < 1e-3
    for steps in (0, 2):
        algo, double = MAML(net, steps, sgd(0.1)), MAML(wide, steps, sgd(0.1))
        loss = evaluate(double, double.init(), sentences()).loss.mean
        assert evaluate(algo, algo.init(), few).loss.mean == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_masks_between_layers_repeat(kind):
    net = network(lambda: Sequences(kind(4, 6, 3, dropout=0.4, batch_first=True), 6))
    algo, episodes = MAML(net, 3, sgd(0.1)), sentences()

    def drawn(strategy, batching="loop", seed=5):
        torch.manual_seed(seed)
        return on(strategy, batching)(algo, algo.init(), episodes)[0]

    want = drawn(Unroll())
    for strategy in (Unroll(), Adjoint(), Checkpointed()):
        assert apart(drawn(strategy), want) < 1e-10
    assert apart(drawn(Adjoint(), "vmap"), want) < 1e-10
    assert apart(drawn(Unroll(), seed=6), want) > 1e-3
