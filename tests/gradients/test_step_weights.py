"""The query loss of every inner step, weighted: each exact strategy and way of running equals the
plain float64 loop, weights that are learned among what the gradient reaches."""

import copy
import functools
import shutil
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import evaluate
from metalearn.algorithms import MAML
from metalearn.backbones import Conv4
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import (
    Adjoint,
    Checkpointed,
    Displacement,
    FirstOrder,
    Implicit,
    Truncated,
    Unroll,
)
from metalearn.inner import lslr
from metalearn.types import META_STEP
from tests.gradients import reference
from tests.tasks import apart, classification, network, on, randomised

WEIGHTS = "step_weights"


@dataclass(frozen=True, eq=False)
class Weighted(MAML):
    """MAML with a learned weight for each step, all of them annealed by the outer loop's step."""

    def init(self):
        meta = super().init()
        meta["hyper"][WEIGHTS] = torch.linspace(0.5, 1.5, self.steps + 1, dtype=torch.float64)
        meta["buffers"][META_STEP] = torch.tensor(3.0)
        return meta

    def step_weights(self, meta) -> Tensor:
        return meta["hyper"][WEIGHTS] / (1 + meta["buffers"][META_STEP])


def weighted_loss(net, init, hyper, episodes, steps, second_order=True, last=None) -> Tensor:
    """The mean over tasks of the weighted sum, by the reference's plain loop for every k."""
    weights = hyper[WEIGHTS] / 4
    rates = {name: t for name, t in hyper.items() if name != WEIGHTS}
    total = torch.zeros((), dtype=torch.float64)
    for k in range(steps + 1):
        keep = None if last is None else max(last - (steps - k), 0)
        total = total + weights[k] * reference.outer_loss(
            net, init, rates, episodes, k,
            rates=reference.per_layer_and_step, second_order=second_order, last=keep,
        )  # fmt: skip
    return total


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@functools.cache
def problem(steps: int, norm: str | None = None, **how):
    """On a small perceptron, or on a Conv-4 with a norm."""
    if norm is None:
        net = plain = network(perceptron)
        episodes = classification(shape=(4,))
    else:
        net = network(lambda: Conv4(3, filters=4, size=16, norm=norm))
        plain = reference.PlainConv4(norm, "pool", 3, 4).double()
        plain.load_state_dict(net.state_dict())
        episodes = classification()
    algo = Weighted(net, steps, lslr(0.1))
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    init = {n: p.detach().clone().requires_grad_() for n, p in plain.named_parameters()}
    hyper = {n: t.clone().requires_grad_() for n, t in meta["hyper"].items()}
    value = weighted_loss(plain, init, hyper, episodes, steps, **how)
    learned = [*init.values(), *hyper.values()]
    grads = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)
    want = {
        "init": dict(zip(init, grads[: len(init)], strict=True)),
        "hyper": dict(zip(hyper, grads[len(init) :], strict=True)),
    }
    return algo, meta, episodes, want


WAYS = ["loop", "vmap", 2, "loop+whole", "2+forward_over_reverse"]


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
@pytest.mark.parametrize("strategy", [Adjoint, Unroll, Checkpointed])
def test_exact(strategy, steps):
    algo, meta, episodes, want = problem(steps)
    for batching in WAYS:
        got, _ = on(strategy(), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10, batching


@pytest.mark.parametrize("norm", ["support", "transductive"])
@pytest.mark.parametrize("strategy", [Adjoint, Unroll, Checkpointed])
def test_statistics_of_every_step(strategy, norm):
    algo, meta, episodes, want = problem(2, norm)
    for batching in ("loop", "vmap+im2col"):
        got, _ = on(strategy(), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize(
    "batching",
    [pytest.param("loop+compile", marks=pytest.mark.slow), "vmap+compile+whole"],
)
def test_compiled(batching):
    algo, meta, episodes, want = problem(2)
    got, _ = on(Adjoint(), batching)(algo, meta, episodes)
    assert apart(got, want) < 1e-10


def test_without_curvature():
    algo, meta, episodes, want = problem(3, second_order=False)
    got, _ = FirstOrder()(algo, meta, episodes)
    assert apart(got, want) < 1e-10
    assert apart(got, problem(3)[3]) > 1e-4


def test_the_curvature_of_the_last_steps():
    algo, meta, episodes, want = problem(3, last=2)
    got, _ = Truncated(2)(algo, meta, episodes)
    assert apart(got, want) < 1e-10


def test_metrics_are_those_of_the_last_step():
    algo, meta, episodes, _ = problem(2)
    plain = copy.copy(algo)
    report = evaluate(plain, meta, episodes)
    for strategy in (Adjoint(), Unroll(), Checkpointed()):
        _, metrics = strategy(algo, meta, episodes)
        torch.testing.assert_close(metrics["loss"].numpy(), report.losses, rtol=1e-12, atol=0)


def test_all_weight_on_the_last_step_is_maml():
    algo, meta, episodes, _ = problem(2)
    last = torch.zeros(3, dtype=torch.float64)
    last[-1] = 4.0
    meta = {**meta, "hyper": {**meta["hyper"], WEIGHTS: last}}
    plain = MAML(algo.module, 2, algo.rule)
    rates = {n: t for n, t in meta["hyper"].items() if n != WEIGHTS}
    want, _ = Unroll()(plain, {**meta, "hyper": rates}, episodes)
    got, _ = Adjoint()(algo, meta, episodes)
    del got["hyper"][WEIGHTS]
    assert apart(got, want) < 1e-10


def test_the_outer_losss_own_value():
    """By finite differences of the weighted sum, along one direction."""
    plain = network(perceptron)
    algo, episodes = Weighted(plain, 2, lslr(0.1)), classification(shape=(4,))
    meta = algo.init()
    got, _ = Adjoint()(algo, meta, episodes)
    along = randomised(meta["init"], seed=1)

    def value(size: float) -> Tensor:
        moved = {n: (t + size * along[n]).requires_grad_() for n, t in meta["init"].items()}
        hyper = {n: t.clone().requires_grad_() for n, t in meta["hyper"].items()}
        return weighted_loss(plain, moved, hyper, episodes, 2).detach()

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    inner = sum((got["init"][n] * along[n]).sum() for n in along)
    torch.testing.assert_close(inner, slope, rtol=1e-5, atol=0)


def test_strategies_that_know_the_end_alone():
    module = nn.Linear(4, 3)
    tasks = classification(shape=(4,), dtype=torch.float32)
    algo = Weighted(module, 2, lslr(0.1), proximal=1.0)
    with pytest.raises(UsageError, match="weighs the query loss of every step"):
        Implicit()(algo, algo.init(), tasks)
    reptile = Weighted(module, 2, kinds=("displacement",))
    with pytest.raises(UsageError, match="Displacement learns no inner rates"):
        Displacement()(reptile, reptile.init(), tasks)


def test_the_outer_loop_counts_its_steps():
    from metalearn.training import Outer, meta_step

    algo, tasks = Weighted(nn.Linear(4, 3), 1), classification(shape=(4,), dtype=torch.float32)
    meta = algo.init()
    outer = Outer(meta, lambda tensors: torch.optim.SGD(tensors, 0.1))
    before = F.cross_entropy(algo.predict(meta, algo.begin(meta, None), tasks.query.x[0]),
                             tasks.query.y[0])  # fmt: skip
    for _ in range(2):
        meta_step(Engine("loop"), Adjoint(), algo, outer, meta, tasks)
    assert meta["buffers"][META_STEP] == 5.0
    after = F.cross_entropy(algo.predict(meta, algo.begin(meta, None), tasks.query.x[0]),
                            tasks.query.y[0])  # fmt: skip
    assert not torch.equal(before, after)
