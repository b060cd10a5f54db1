"""LEEP: how well the labels are told by the classes that a network was trained on; and N-LEEP, with
a mixture of Gaussians in their place.

    P(y, z) = 1/n sum over i with y_i = y of  theta(x_i)_z
    LEEP = 1/n sum over i of  log(sum over z of  P(y_i | z) theta(x_i)_z)           (eq. 1, 2)

Nguyen, Hassner, Seeger, Archambeau: LEEP: A New Measure to Evaluate Transferability of Learned
Representations, 2020. N-LEEP: theta is the posterior of a Gaussian mixture on the principal
components of the features. Li, Jia, Sang, Zhu, Green, Wang, Gong: Ranking Neural Checkpoints, 2021,
section 4.2.
"""

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from metalearn.evaluation.selection.examples import examples, probabilities

ENERGY = 0.8
"""Of the variance, what the principal components keep, as in the paper."""
PER_CLASS = 5
"""Gaussians for each class, as in the paper, but never more than half of the examples."""


def leep(theta: np.ndarray, labels: np.ndarray) -> float:
    """LEEP of probabilities `[n, Z]` of the source classes and labels `[n]`. Raises DataError."""
    given = probabilities(theta, labels)
    joint = given.one_hot.T @ given.x / len(given.x)
    of_source = joint.sum(0)
    # A source class that nothing looks like tells nothing, and has weight 0 below.
    told = joint / np.where(of_source > 0, of_source, 1)
    expected = np.einsum("nz,nz->n", told[given.labels], given.x)
    return float(np.log(expected).mean())


def n_leep(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """N-LEEP of features `[n, D]` and labels `[n]`; Gaussians with a variance of each component.

    seed: of the mixture's start. Raises DataError.
    """
    x, places, counts = examples(features, labels)
    if np.ptp(x, 0).max() == 0:  # one point: any mixture says the same of every example
        return leep(np.ones((len(x), 1)), places)
    reduced = PCA(ENERGY, svd_solver="full").fit_transform(x)
    reduced /= reduced.std(0).max()
    number = max(1, min(PER_CLASS * len(counts), len(x) // 2))
    mixture = GaussianMixture(number, covariance_type="diag", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its last step will do
        theta = mixture.fit(reduced).predict_proba(reduced)
    return leep(theta / theta.sum(1, keepdims=True), places)
