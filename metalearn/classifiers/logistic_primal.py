"""Newton's method for logistic regression in its weights, for more examples than features.

With examples x_i, 1 behind the features, P the probabilities at theta `[D + 1, N]`, H_i the matrix
diag(p_i) - p_i p_i^T and J the identity but for the 1, which has no penalty, a step solves

    (J + C sum over i of  w_i H_i (x) x_i x_i^T) d = J theta + C sum over i of  w_i (p_i - y_i) x_i

of size N (D + 1), where the form of `logistic_regression` has N systems of the number of examples.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.classifiers.classes import cross_entropies, masked


class Problem(NamedTuple):
    """x: `[S, D + 1]`. hot: classes, one-hot, `[S, N]`. weight: `[S]`. strength: C. counts: `[N]`,
    the examples of each class."""

    x: Tensor
    hot: Tensor
    weight: Tensor
    strength: Tensor
    counts: Tensor


def cheaper(size: int, features: int, ways: int) -> bool:
    """Whether a step costs less so than by N systems of the number of examples."""
    wide = ways * (features + 1)
    return 2 * size * wide**2 + wide**3 / 3 < 3.4 * ways * size**3


def with_one(x: Tensor) -> Tensor:
    """Features `[S, D]` with a 1 behind them."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def newton(theta: Tensor, problem: Problem) -> Tensor:
    """`theta` after a whole step."""
    x, hot, weight, strength, counts = problem
    ways, size = hot.shape[1], x.shape[1]
    p = masked(x @ theta, counts).softmax(1)
    w = strength * weight.unsqueeze(1)
    penalty = torch.ones_like(x[0])
    penalty = torch.cat([penalty[1:], 0 * penalty[:1]])
    slope = penalty.unsqueeze(1) * theta + x.T @ (w * (p - hot))
    each = (x.T.unsqueeze(0) * (w * p).T.unsqueeze(1)) @ x  # [N, D + 1, D + 1]
    root = w.sqrt() * p
    beside = (root.unsqueeze(2) * x.unsqueeze(1)).flatten(1)  # [S, N (D + 1)]
    own = torch.eye(ways, dtype=x.dtype, device=x.device)
    blocks = (own.view(ways, 1, ways, 1) * each.unsqueeze(2)).reshape(ways * size, ways * size)
    # What all of b have in common changes nothing, and b is 0 for a class that is not there.
    there = (counts > 0).to(x.dtype)
    shared = weight.sum() * strength * torch.outer(there, there) + torch.diag(1 - there)
    last = torch.diag(1 - penalty)
    held = torch.diag(penalty.repeat(ways)) + torch.kron(shared, last)
    lower = torch.linalg.cholesky_ex(blocks - beside.T @ beside + held)[0]
    step = torch.cholesky_solve(slope.T.reshape(-1, 1), lower)
    return theta - step.view(ways, size).T


def minimum(problem: Problem, steps: int, lengths: Tensor) -> Tensor:
    """theta there: each step as long, of `lengths`, as lowers the loss the most."""
    x, hot, weight, strength, counts = problem
    theta = torch.zeros_like(x[0].unsqueeze(1) * hot[:1])
    lengths = lengths.view(-1, 1, 1)
    for _ in range(steps):
        every = theta + lengths * (newton(theta, problem) - theta)
        errors = cross_entropies(masked(x @ every, counts), hot)
        losses = strength * (weight * errors).sum(1) + every[:, :-1].square().sum((1, 2)) / 2
        theta = every.index_select(0, losses.argmin(0, keepdim=True)).squeeze(0)
    return theta
