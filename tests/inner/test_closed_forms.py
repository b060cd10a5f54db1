"""The inner loop and the meta-gradient where both can be written down: quadratic tasks.

Inner loss 1/2 (theta - c)' A (theta - c), outer loss 1/2 |theta - d|^2, in numpy:

    theta_K = c + M^K (theta - c),   M = I - alpha A,   meta-gradient = M^K (theta_K - d)
"""

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import Batch, Episodes, adapt
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import mean_squared
from metalearn.gradients import Adjoint, FirstOrder, Unroll
from metalearn.inner import lslr, meta_sgd, sgd, trajectory
from metalearn.types import Given
from tests.tasks import on, task

SIZE, TASKS, STEPS, RATE = 4, 3, 5, 0.07


class Point(nn.Module):
    """Weights without a network: the output is x theta."""

    def __init__(self, start):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(start).clone())

    def forward(self, x):
        return x @ self.theta


def half_square(values, batch):
    loss = (values - batch.y).square().sum() / 2
    return loss, {"loss": loss.detach()}


def quadratic():
    """(start, [(A, c, d)], episodes): support x is a root of A, so that x'x = A."""
    g = np.random.default_rng(0)
    start = g.normal(size=SIZE)
    roots = g.normal(size=(TASKS, SIZE, SIZE))
    c, d = g.normal(size=(2, TASKS, SIZE))
    support = Batch(torch.tensor(roots), torch.tensor(np.einsum("tij,tj->ti", roots, c)))
    eye = torch.eye(SIZE, dtype=torch.float64).expand(TASKS, SIZE, SIZE)
    constants = [(root.T @ root, c[t], d[t]) for t, root in enumerate(roots)]
    return start, constants, Episodes(support, Batch(eye, torch.tensor(d)))


def product(rates, A):
    """M_K ... M_1 for the vectors of rates of consecutive steps."""
    result = np.eye(SIZE)
    for rate in rates:
        result = (np.eye(SIZE) - np.diag(rate) @ A) @ result
    return result


def walk_back(start, constants, rates):
    """Mean gradients of the start and of each step's vector of rates, by the product of M_k."""
    d_start, d_rates = np.zeros(SIZE), np.zeros_like(rates)
    for A, c, d in constants:
        path = [start]
        for rate in rates:
            path.append(path[-1] - rate * (A @ (path[-1] - c)))
        for k in range(len(rates)):
            later = product(rates[k + 1 :], A)
            d_rates[k] -= (A @ (path[k] - c)) * (later.T @ (path[-1] - d)) / TASKS
        d_start += product(rates, A).T @ (path[-1] - d) / TASKS
    return d_start, d_rates


def close(got, want):
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("steps", [0, 1, 3, 50])
def test_adapt_is_a_power_of_the_step(steps):
    start, constants, episodes = quadratic()
    algo = MAML(Point(start), steps=1, rule=sgd(RATE), loss=half_square)
    for t, (A, c, _) in enumerate(constants):
        power = np.linalg.matrix_power(np.eye(SIZE) - RATE * A, steps)
        fast = adapt(algo, algo.init(), task(episodes, t).support, steps=steps)
        close(fast["theta"].detach(), c + power @ (start - c))


def test_trajectory_visits_every_power():
    start, [(A, c, _), *_], episodes = quadratic()
    algo = MAML(Point(start), rule=sgd(RATE), loss=half_square)
    path = list(trajectory(algo, algo.init(), Given(task(episodes, 0).support), 4))
    assert len(path) == 5
    for k, (fast, _) in enumerate(path):
        power = np.linalg.matrix_power(np.eye(SIZE) - RATE * A, k)
        close(fast["theta"].detach(), c + power @ (start - c))


@pytest.mark.parametrize("strategy", [Unroll, Adjoint, FirstOrder])
@pytest.mark.parametrize("batching", ["loop", "vmap", 2])
def test_meta_gradient_of_the_start(strategy, batching):
    start, constants, episodes = quadratic()
    algo = MAML(Point(start), steps=STEPS, rule=sgd(RATE), loss=half_square)
    want = np.zeros(SIZE)
    for A, c, d in constants:
        power = np.linalg.matrix_power(np.eye(SIZE) - RATE * A, STEPS)
        end = c + power @ (start - c)
        want += (end - d if strategy is FirstOrder else power @ (end - d)) / TASKS
    got, metrics = on(strategy(), batching)(algo, algo.init(), episodes)
    close(got["init"]["theta"], want)
    assert metrics["loss"].shape == (TASKS,)


@pytest.mark.parametrize("strategy", [Unroll, Adjoint])
def test_meta_gradient_of_a_rate_for_each_step(strategy):
    start, constants, episodes = quadratic()
    algo = MAML(Point(start), steps=STEPS, rule=lslr(RATE), loss=half_square)
    meta = algo.init()
    rates = np.linspace(0.02, 0.1, STEPS)
    meta["hyper"] = {"rate.module": torch.tensor(rates)}
    d_start, d_rates = walk_back(start, constants, np.repeat(rates[:, None], SIZE, 1))
    got, _ = strategy()(algo, meta, episodes)
    close(got["init"]["theta"], d_start)
    close(got["hyper"]["rate.module"], d_rates.sum(1))


@pytest.mark.parametrize("strategy", [Unroll, Adjoint])
def test_meta_gradient_of_a_rate_for_each_weight(strategy):
    start, constants, episodes = quadratic()
    algo = MAML(Point(start), steps=STEPS, rule=meta_sgd(RATE), loss=half_square)
    meta = algo.init()
    rates = np.linspace(0.02, 0.1, SIZE)
    meta["hyper"] = {"rate.theta": torch.tensor(rates)}
    d_start, d_rates = walk_back(start, constants, np.tile(rates, (STEPS, 1)))
    got, _ = strategy()(algo, meta, episodes)
    close(got["init"]["theta"], d_start)
    close(got["hyper"]["rate.theta"], d_rates.sum(0))


def test_linear_regression_ends_at_least_squares():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=g, dtype=torch.float64)
    y = torch.randn(20, 2, generator=g, dtype=torch.float64)
    algo = MAML(nn.Linear(3, 2).double(), rule=sgd(0.3), loss=mean_squared)
    fast = adapt(algo, algo.init(), Batch(x, y), steps=400)
    design = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(fast["weight"].T.detach(), solution[:3], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(fast["bias"].detach(), solution[3], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("strategy", [Unroll, Adjoint])
def test_linear_regression_meta_gradient(strategy):
    """One output: L = |X w - y|^2 / n has the Hessian 2 X'X / n, in both loops."""
    g = torch.Generator().manual_seed(1)
    parts = [torch.randn(1, 6, 3, generator=g, dtype=torch.float64) for _ in range(2)]
    targets = [torch.randn(1, 6, 1, generator=g, dtype=torch.float64) for _ in range(2)]
    episodes = Episodes(*(Batch(x, y) for x, y in zip(parts, targets, strict=True)))
    algo = MAML(nn.Linear(3, 1, bias=False).double(), steps=3, rule=sgd(0.1), loss=mean_squared)
    meta = algo.init()
    (X, Z), (y, z) = ([t[0].numpy() for t in pair] for pair in (parts, targets))
    w = meta["init"]["weight"].numpy().T
    for _ in range(3):
        w = w - 0.1 * 2 / 6 * X.T @ (X @ w - y)
    power = np.linalg.matrix_power(np.eye(3) - 0.1 * 2 / 6 * X.T @ X, 3)
    got, metrics = strategy()(algo, meta, episodes)
    close(got["init"]["weight"].T, power @ (2 / 6 * Z.T @ (Z @ w - z)))
    close(metrics["loss"][0], ((Z @ w - z) ** 2).mean())
