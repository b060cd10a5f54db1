"""H-score: how much of the features' spread lies between classes.

    H(f) = tr(cov(f)^-1 cov(E[f | y]))

Bao, Li, Huang, Zhang, Zheng, Zamir, Guibas: An Information-Theoretic Approach to Transferability in
Task Transfer Learning, 2019. Where there are no more examples than features it says nothing: it is
the number of classes less one for any features. With a shrunk covariance it does:

    H_a(f) = tr(cov_a(f)^-1 (1 - a) cov(E[f | y])),   cov_a = (1 - a) cov + a (tr cov / D) I

a by Ledoit and Wolf. Ibrahim, Ponomareva, Mazumder: Newer is not always better: Rethinking
transferability metrics, their peculiarities, stability and performance, 2021, section 4.
"""

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

from metalearn.evaluation.selection.examples import Examples, examples


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score of features `[n, D]` and labels `[n]`, by the pseudo-inverse. Raises DataError."""
    given = examples(features, labels)
    return _score(given, 0.0)


def shrunk_h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """The H-score by a covariance that is shrunk to a multiple of the identity."""
    given = examples(features, labels)
    return _score(given, float(ledoit_wolf_shrinkage(given.x)))


def _score(given: Examples, shrinkage: float) -> float:
    x, _, counts = given
    centre = x.mean(0)
    cov = (x - centre).T @ (x - centre) / len(x)
    spread = (given.means - centre) * np.sqrt(counts / len(x))[:, None]
    mean_variance = np.trace(cov) / len(cov)
    cov = (1 - shrinkage) * cov + shrinkage * mean_variance * np.eye(len(cov))
    inverse = np.linalg.pinv(cov, rcond=1e-10, hermitian=True)
    return float((1 - shrinkage) * np.einsum("cd,de,ce->", spread, inverse, spread))
