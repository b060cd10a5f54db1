"""What strategies refuse, each in one line that says what to change."""

import dataclasses

import pytest
import torch
from torch import nn

from metalearn import gradients
from metalearn.algorithms import MAML, ProtoNet, Reptile
from metalearn.errors import UsageError
from metalearn.gradients.batching import resolve
from tests.tasks import apart, classification, network

STRATEGIES = [gradients.Unroll, gradients.Adjoint, gradients.FirstOrder, gradients.Reptile]


def algorithm(strategy):
    build = Reptile if strategy is gradients.Reptile else MAML
    return build(network(lambda: nn.Linear(4, 3)), steps=1)


def refused(strategy, algo, episodes=None) -> str:
    episodes = episodes or classification(shape=(4,))
    with pytest.raises(UsageError) as error:
        strategy(algo, algo.init(), episodes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_precisions_to_come(strategy, precision):
    line = refused(strategy(precision=precision), algorithm(strategy))
    assert precision in line and "is not there yet" in line and "fp32" in line


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unknown_precision(strategy):
    line = refused(strategy(precision="double"), algorithm(strategy))
    assert "double" in line and "is not known" in line


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("batching", ["nonsense", 0, -1, True, 1.5, None])
def test_unknown_batching(strategy, batching):
    line = refused(strategy(batching=batching), algorithm(strategy))
    assert repr(batching) in line and "auto, loop, vmap" in line


@pytest.mark.parametrize(
    "batching, size", [("auto", None), ("loop", None), ("vmap", 3), (1, 1), (2, 2), (8, 3)]
)
def test_batching_on_the_cpu(batching, size):
    assert resolve(batching, classification(tasks=3, shape=(4,))) == size


def test_no_tasks():
    episodes = classification(shape=(4,))
    empty = type(episodes)(*(type(b)(b.x[:0], b.y[:0]) for b in episodes))
    for batching in ("loop", 2, "vmap"):
        line = refused(gradients.Unroll(batching=batching), algorithm(gradients.Unroll), empty)
        assert "meta_batch of 1 or more" in line


@pytest.mark.parametrize(
    "strategy, build, fitting",
    [
        (gradients.Reptile(), MAML, "Unroll or Adjoint or FirstOrder"),
        (gradients.Unroll(), Reptile, "Reptile"),
        (gradients.Adjoint(), Reptile, "Reptile"),
        (gradients.FirstOrder(), ProtoNet, "Unroll or Adjoint"),
        (gradients.Reptile(), ProtoNet, "Unroll or Adjoint"),
    ],
)
def test_a_strategy_that_does_not_fit(strategy, build, fitting):
    line = refused(strategy, build(network(lambda: nn.Linear(4, 3))))
    assert line.startswith(f"gradient {type(strategy).__name__} does not fit")
    assert line.endswith(f"use {fitting}")


def test_adjoint_refuses_dropout_that_it_would_draw_twice():
    net = network(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    assert "use Unroll or call eval()" in refused(gradients.Adjoint(), MAML(net, steps=1))
    net[1].eval()
    algo, episodes = MAML(net, steps=1), classification(shape=(4,))
    got, _ = gradients.Adjoint()(algo, algo.init(), episodes)
    assert apart(got, gradients.Unroll()(algo, algo.init(), episodes)[0]) < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_are_values(strategy):
    assert strategy("vmap") == strategy(batching="vmap") != strategy("loop")
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy().batching = "loop"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_history_is_left(strategy):
    algo = algorithm(strategy)
    meta = algo.init()
    meta["init"] = {n: t.requires_grad_() for n, t in meta["init"].items()}
    got, metrics = strategy()(algo, meta, classification(shape=(4,)))
    assert not any(t.requires_grad for t in [*got["init"].values(), *metrics.values()])
    assert torch.is_grad_enabled()
