"""Few-shot classifiers on features, as values."""

from metalearn.classifiers.centroid import Centroid
from metalearn.classifiers.cosine import Cosine
from metalearn.classifiers.linear_probe import LinearProbe
from metalearn.classifiers.logistic_regression import LogisticRegression
from metalearn.classifiers.protocol import Classifier
from metalearn.classifiers.ridge import Ridge
from metalearn.classifiers.soft_kmeans import SoftKMeans

__all__ = [
    "Centroid",
    "Classifier",
    "Cosine",
    "LinearProbe",
    "LogisticRegression",
    "Ridge",
    "SoftKMeans",
]
