"""What the scores are given, checked once."""

from typing import NamedTuple

import numpy as np

from metalearn.errors import DataError


class Examples(NamedTuple):
    """x: float64 `[n, D]`. labels: 0 to C-1, `[n]`, each of them there. counts: of each `[C]`."""

    x: np.ndarray
    labels: np.ndarray
    counts: np.ndarray

    @property
    def one_hot(self) -> np.ndarray:
        """`[n, C]`."""
        return np.eye(len(self.counts))[self.labels]

    @property
    def means(self) -> np.ndarray:
        """Of each class, `[C, D]`."""
        return self.one_hot.T @ self.x / self.counts[:, None]


def examples(x: np.ndarray, labels: np.ndarray) -> Examples:
    """`x` `[n, D]` and its `labels` `[n]`, whatever numbers stand for the classes.

    Raises DataError for other shapes, for values that are not finite, and for one class alone.
    """
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise DataError(
            f"a score needs features [n, D] and labels [n], not {x.shape}, {labels.shape}"
        )
    if not np.isfinite(x).all():
        raise DataError("a score needs finite features; these have others: choose another network")
    classes, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"a score needs examples of two classes or more, not of {len(classes)}")
    return Examples(x, places.reshape(-1), counts)


def probabilities(x: np.ndarray, labels: np.ndarray) -> Examples:
    """As `examples`, of probabilities. Raises DataError where rows do not sum to 1."""
    found = examples(x, labels)
    if (found.x < 0).any() or not np.allclose(found.x.sum(1), 1, atol=1e-5):
        raise DataError("LEEP and NCE need probabilities of the source classes, rows of sum 1")
    return found
