"""Few-shot classifiers on features, as values."""

from metalearn.classifiers.alpha_tim import AlphaTIM
from metalearn.classifiers.bd_cspn import BDCSPN
from metalearn.classifiers.centroid import Centroid
from metalearn.classifiers.cosine import Cosine
from metalearn.classifiers.laplacian_shot import LaplacianShot
from metalearn.classifiers.linear_probe import LinearProbe
from metalearn.classifiers.logistic_regression import LogisticRegression
from metalearn.classifiers.protocol import Classifier
from metalearn.classifiers.pt_map import PTMAP
from metalearn.classifiers.ridge import Ridge
from metalearn.classifiers.soft_kmeans import SoftKMeans
from metalearn.classifiers.tim import TIM
from metalearn.classifiers.transductive_fine_tuning import TransductiveFineTuning

__all__ = [
    "BDCSPN",
    "PTMAP",
    "TIM",
    "AlphaTIM",
    "Centroid",
    "Classifier",
    "Cosine",
    "LaplacianShot",
    "LinearProbe",
    "LogisticRegression",
    "Ridge",
    "SoftKMeans",
    "TransductiveFineTuning",
]
