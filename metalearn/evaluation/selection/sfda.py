"""SFDA: how surely a regularised Fisher discriminant tells the classes, made harder by itself.

    S'_W = (1 - l) S_W + l I,   l = exp(-a s(S_W)),  s the largest eigenvalue
    U = the U that maximises  U^T S_B U / U^T S'_W U
    p(c | f) = softmax over c of  f^T U U^T m_c - 1/2 m_c^T U U^T m_c + log q_c
    f'_i = p(y_i | f_i) f_i + (1 - p(y_i | f_i)) * mean of the features of other classes
    SFDA = 1/n sum over i of  log p'(y_i | f'_i),  p' of a discriminant on the f' with the same l

S_W the mean over examples of the scatter about their classes' means m_c, q_c the shares of classes.
U is scaled so that U^T S'_W U = I; then U U^T acts between the m_c as the inverse of S'_W, by which
it is computed here. Shao, Zhao, Ge, Zhang, Yang, Wang, Shan, Luo: Not All Models Are Equal:
Predicting Model Transferability in a Self-challenging Fisher Space, 2022.
"""

import numpy as np
from scipy.linalg import eigh, eigvalsh
from scipy.special import log_softmax

from metalearn.evaluation.selection.examples import Examples, examples

SHARPNESS = 5.0
"""a, of the authors' code."""
_LEAST = 1e-10


def sfda(features: np.ndarray, labels: np.ndarray, sharpness: float = SHARPNESS) -> float:
    """SFDA of features `[n, D]` and labels `[n]`, 0 at most. Raises DataError."""
    given = examples(features, labels)
    largest = float(eigvalsh(_within(given))[-1])
    strength = max(float(np.exp(-sharpness * max(largest, 0))), _LEAST)
    sure = np.exp(_own(given, strength))[:, None]
    sums = given.means * given.counts[:, None]
    others = (sums.sum(0) - sums) / (len(given.x) - given.counts)[:, None]
    mixed = given._replace(x=sure * given.x + (1 - sure) * others[given.labels])
    return float(_own(mixed, strength).mean())


def _within(given: Examples) -> np.ndarray:
    apart = given.x - given.means[given.labels]
    return apart.T @ apart / len(apart)


def _own(given: Examples, strength: float) -> np.ndarray:
    """The log probability of each example's own class, `[n]`."""
    values, vectors = eigh(_within(given))
    values = (1 - strength) * np.maximum(values, 0) + strength
    values = np.maximum(values, values.max() * np.finfo(np.float64).eps)  # below it is rounding
    means = given.means
    coefficients = vectors @ (vectors.T @ means.T / values[:, None])
    offset = np.log(given.counts / len(given.x)) - (means.T * coefficients).sum(0) / 2
    return log_softmax(given.x @ coefficients + offset, 1)[np.arange(len(given.x)), given.labels]
