"""LogME: the evidence of linear regression from features to labels, at its maximum.

    p(y | F, a, b) = N(y | 0, F F^T / a + I / b)
    LogME = mean over classes c of  max over a, b of  log p(y_c | F, a, b) / n

y_c is 1 for the examples of class c, else 0. You, Liu, Wang, Long: LogME: Practical Assessment of
Pre-trained Models for Transfer Learning, 2021. Their fixed point for a and b is replaced by a
search over t = a / b alone, which cannot stop short: for a given t the best b is known, and with
F = U S V^T, z = U^T y, r the rank,

    E(t) = sum over i of  z_i^2 t / (t + s_i^2)  +  |y|^2 - |z|^2,      b = n / E(t)
    2 log p = n log b - n - n log 2 pi + sum over i of  log(t / (t + s_i^2)).
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from metalearn.evaluation.selection.examples import examples

_RANGE = 1e10
"""How far t may lie from the largest squared singular value, either way."""
_POINTS = 200


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME of features `[n, D]` and labels `[n]`. Raises DataError."""
    x, _, counts = given = examples(features, labels)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    kept = s > s[0] * max(x.shape) * np.finfo(np.float64).eps if s[0] else s > 0
    squares, one_hot = s[kept] ** 2, given.one_hot
    z = (u[:, kept].T @ one_hot) ** 2
    outside = np.maximum(counts - z.sum(0), 0)
    return float(np.mean([_best(squares, z[:, c], outside[c], len(x)) for c in range(len(counts))]))


def _best(squares: np.ndarray, z: np.ndarray, outside: float, n: int) -> float:
    """The largest log evidence of one class, divided by n."""

    def loss(log_t: np.ndarray) -> np.ndarray:
        share = 1 / (1 + squares[:, None] / np.exp(log_t))
        energy = np.maximum((z[:, None] * share).sum(0) + outside, np.finfo(np.float64).tiny)
        evidence = n * np.log(n / energy) - n - n * np.log(2 * np.pi) + np.log(share).sum(0)
        return -evidence / 2 / n

    middle = np.log(squares.max()) if len(squares) else 0.0
    grid = np.linspace(middle - np.log(_RANGE), middle + np.log(_RANGE), _POINTS)
    values = loss(grid)
    place = int(values.argmin())
    low, high = grid[max(place - 1, 0)], grid[min(place + 1, _POINTS - 1)]
    found: Any = minimize_scalar(
        lambda log_t: loss(np.array([log_t]))[0], bounds=(low, high), method="bounded"
    )
    return -min(float(found.fun), float(values[place]))
