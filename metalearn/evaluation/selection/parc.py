"""PARC: whether examples that lie far apart in feature space differ in their labels too.

    PARC = 100 Spearman({D_f[i, j] : i < j}, {D_y[i, j] : i < j}),   D[i, j] = 1 - Pearson(i, j)

D_f of features of mean 0 and variance 1 over the examples, D_y of one-hot labels. Bolya,
Mittapalli, Hoffman: Scalable Diverse Model Selection for Accessible Transfer Learning, 2021.
"""

import numpy as np
from scipy.stats import rankdata

from metalearn.evaluation.selection.examples import examples


def parc(features: np.ndarray, labels: np.ndarray) -> float:
    """PARC of features `[n, D]` and labels `[n]`, -100 to 100; 0 for features that are all equal.

    Its pairs take n^2 numbers. Raises DataError.
    """
    given = examples(features, labels)
    pairs = np.triu_indices(len(given.x), 1)
    far = rankdata(_distances(_standardised(given.x))[pairs])
    other = rankdata(_distances(given.one_hot)[pairs])
    if np.ptp(far) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(100 * np.corrcoef(far, other)[0, 1])


def _standardised(x: np.ndarray) -> np.ndarray:
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)


def _distances(x: np.ndarray) -> np.ndarray:
    """1 - Pearson's correlation of every two rows; 1 where one has no direction."""
    x = x - x.mean(1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(length > 0, length, 1)
    # Equal labels have one distance, whatever the rounding.
    return (1 - x @ x.T).round(12)
