"""Strategies of another objective, and one that is two: noise, a bootstrapped target, annealing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import Batch, Episodes
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import mean_squared
from metalearn.backbones import Conv4
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Annealed, Bootstrapped, Evolution, FirstOrder, Unroll
from metalearn.inner import lslr, sgd
from metalearn.training import Outer, meta_step
from tests.tasks import apart, classification, network, on, regression, task


def drawn(strategy, batching, *given, seed=0):
    torch.manual_seed(seed)
    return on(strategy, batching)(*given)


def test_evolution_is_unbiased_for_the_smoothed_objective():
    """Adaptation of a linear model is linear in theta, so its query loss is a quadratic, which
    smoothing only lifts: the mean of many directions is the closed form's gradient."""
    tasks, rate = regression(1, 5, 2, 1), 0.3
    algo = MAML(network(lambda: nn.Linear(2, 1, bias=False)), 1, sgd(rate), loss=mean_squared)
    meta = algo.init()
    (x, y, _), (query, target, _), _ = task(tasks, 0)
    theta = meta["init"]["weight"][0]
    step = torch.eye(2, dtype=torch.float64) - rate * 2 / 5 * x.T @ x
    end = step @ theta + rate * 2 / 5 * x.T @ y[:, 0]
    want = step.T @ (2 / 5 * query.T @ (query @ end - target[:, 0]))
    torch.testing.assert_close(Unroll()(algo, meta, tasks)[0]["init"]["weight"][0], want)
    pairs = 4000
    many = tasks.map(lambda t: t.expand(10, *t.shape[1:]))
    got, metrics = drawn(Evolution(sigma=2.0, pairs=pairs // 10), "vmap", algo, meta, many)
    # Of a quadratic the estimate is (g . e) e, whose entries have a variance of g_i^2 + |g|^2.
    deviation = ((want.square() + want.square().sum()) / pairs).sqrt()
    assert ((got["init"]["weight"][0] - want).abs() < 4 * deviation).all()
    loss = F.mse_loss(query @ end, target[:, 0])
    torch.testing.assert_close(metrics["loss"], loss.expand(10))


def test_evolution_moves_rates_is_deterministic_by_seed_and_takes_any_batching():
    net, tasks = network(lambda: nn.Linear(4, 3)), classification(shape=(4,))
    algo = MAML(net, 2, lslr(0.1), multi_step=10)
    given, strategy = (algo, algo.init(), tasks), Evolution(pairs=2)
    one, again = (drawn(strategy, "loop", *given)[0] for _ in range(2))
    assert apart(one, again) == 0
    assert apart(one, drawn(strategy, "loop", *given, seed=1)[0]) > 1e-2
    assert apart(one, drawn(strategy, "vmap", *given)[0]) < 1e-10
    assert one["hyper"]["rate.module"].abs().min() > 0
    with pytest.raises(UsageError, match=r"gradient.sigma=0.0 must be above 0"):
        Evolution(sigma=0.0)


@pytest.mark.parametrize("real", [False, True])
def test_the_bootstrapped_target_is_that_of_the_plain_loop(real):
    rate, last, loss = 0.3, 0.2, (F.mse_loss if real else F.cross_entropy)
    tasks = regression(outputs=3) if real else classification(shape=(4,))
    net = network(lambda: nn.Linear(4, 3))
    algo = MAML(net, 2, sgd(rate), loss=mean_squared) if real else MAML(net, 2, sgd(rate))
    meta, total = algo.init(), 0
    init = {n: w.clone().requires_grad_() for n, w in meta["init"].items()}

    def descend(fast, batch, rate, steps):
        for _ in range(steps):
            value = loss(F.linear(batch.x, *fast), batch.y)
            grads = torch.autograd.grad(value, fast, create_graph=True)
            fast = [w - rate * g for w, g in zip(fast, grads, strict=True)]
        return fast

    for t in range(3):
        support, query, _ = task(tasks, t)
        fast = descend([*init.values()], support, rate, 2)
        far = descend(descend(fast, support, rate, 2), query, last, 1)
        wanted, got = F.linear(query.x, *far).detach(), F.linear(query.x, *fast)
        logs = got.log_softmax(1), wanted.log_softmax(1)
        apart_by = (
            F.mse_loss(wanted, got) if real else F.kl_div(*logs, None, None, "batchmean", True)
        )
        total = total + apart_by / 3
    want = {"init": dict(zip(init, torch.autograd.grad(total, [*init.values()]), strict=True))}
    for batching in ("loop", "vmap"):
        got, metrics = on(Bootstrapped(more=3, rate=last), batching)(algo, meta, tasks)
        assert apart(got, {**want, "hyper": {}}) < 1e-10
        torch.testing.assert_close(metrics, Unroll()(algo, meta, tasks)[1])


def test_bootstrapped_takes_no_weights_of_steps():
    """They would shorten the target's last step, and count nowhere else."""
    algo = MAML(network(lambda: nn.Linear(4, 3)), 2, sgd(0.1), multi_step=10)
    with pytest.raises(UsageError, match=r"of every step; use algorithm.multi_step=0"):
        Bootstrapped()(algo, algo.init(), classification(shape=(4,)))


def test_bootstrapped_leaves_padding_out_or_says_that_it_cannot():
    tasks = classification(1, 3, 2, 5)
    support, query, _ = tasks
    noise = torch.full_like(query.x[:, :2], 9.0)
    weight = torch.ones(1, 7, dtype=torch.float64)
    weight[:, 5:] = 0
    padded = Batch(torch.cat([query.x, noise], 1), torch.cat([query.y, query.y[:, :2]], 1), weight)
    for norm in ("support", "transductive"):
        algo = MAML(network(lambda norm=norm: Conv4(3, filters=2, size=16, norm=norm)), 1, sgd(0.1))
        if norm == "transductive":
            with pytest.raises(UsageError, match=r"use backbone.norm=support"):
                Bootstrapped(1)(algo, algo.init(), Episodes(support, padded))
        else:
            want, _ = Bootstrapped(1)(algo, algo.init(), tasks)
            got, _ = Bootstrapped(1)(algo, algo.init(), Episodes(support, padded))
            assert apart(got, want) < 1e-10


def test_annealed_is_first_order_and_then_exact():
    algo = MAML(network(lambda: nn.Linear(4, 3)), 2, sgd(0.3))
    meta, tasks, strategy = algo.init(), classification(shape=(4,)), Annealed(meta_steps=2)
    assert [strategy.at(n) for n in (1, 2, 3)] == [FirstOrder(), FirstOrder(), Adjoint()]
    assert apart(strategy(algo, meta, tasks)[0], Unroll()(algo, meta, tasks)[0]) < 1e-10
    with pytest.raises(UsageError, match=r"gradient.meta_steps=-1 must be 0 or more"):
        Annealed(-1)


def test_a_sharp_outer_step_follows_the_gradient_at_the_worst_point_near_by():
    algo, radius = MAML(network(lambda: nn.Linear(4, 3)), 1, sgd(0.3)), 0.7
    tasks, meta = classification(shape=(4,)), algo.init()
    slope = Unroll()(algo, meta, tasks)[0]["init"]
    size = torch.cat([g.flatten() for g in slope.values()]).norm()
    above = {n: w + radius * slope[n] / size for n, w in meta["init"].items()}
    there = Unroll()(algo, {**meta, "init": above}, tasks)[0]["init"]
    want = {n: w - 0.1 * there[n] for n, w in meta["init"].items()}
    outer = Outer(meta, lambda tensors: torch.optim.SGD(tensors, 0.1), sharpness=radius)
    meta_step(Engine("loop"), Unroll(), algo, outer, meta, tasks)
    torch.testing.assert_close(meta["init"], want, rtol=1e-12, atol=0)
    with pytest.raises(UsageError, match=r"outer.sharpness=-1 must be 0 or more"):
        Outer(meta, lambda tensors: torch.optim.SGD(tensors, 0.1), sharpness=-1)
    nothing = {**meta, "init": {}, "hyper": meta["init"]}
    with pytest.raises(UsageError, match=r"outer.sharpness=0.1 moves the starting weights, and"):
        Outer(nothing, lambda tensors: torch.optim.SGD(tensors, 0.1), sharpness=0.1)
