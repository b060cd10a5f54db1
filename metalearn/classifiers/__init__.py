"""Few-shot classifiers on features, as values."""

from metalearn.classifiers.alpha_tim import AlphaTIM
from metalearn.classifiers.bd_cspn import BDCSPN
from metalearn.classifiers.centroid import Centroid
from metalearn.classifiers.cosine import Cosine
from metalearn.classifiers.deep_bdc import DeepBDC
from metalearn.classifiers.distribution_calibration import DistributionCalibration
from metalearn.classifiers.feat import FEAT
from metalearn.classifiers.frn import FRN
from metalearn.classifiers.laplacian_shot import LaplacianShot
from metalearn.classifiers.linear_probe import LinearProbe
from metalearn.classifiers.logistic_regression import LogisticRegression
from metalearn.classifiers.matching import Matching
from metalearn.classifiers.member_weights import MemberWeights
from metalearn.classifiers.protocol import Classifier
from metalearn.classifiers.pt_map import PTMAP
from metalearn.classifiers.relation import Relation
from metalearn.classifiers.ridge import Ridge
from metalearn.classifiers.simple_cnaps import SimpleCNAPS
from metalearn.classifiers.simple_shot import SimpleShot
from metalearn.classifiers.soft_kmeans import SoftKMeans
from metalearn.classifiers.svm import SVM
from metalearn.classifiers.tim import TIM
from metalearn.classifiers.transductive_fine_tuning import TransductiveFineTuning

__all__ = [
    "BDCSPN",
    "FEAT",
    "FRN",
    "PTMAP",
    "SVM",
    "TIM",
    "AlphaTIM",
    "Centroid",
    "Classifier",
    "Cosine",
    "DeepBDC",
    "DistributionCalibration",
    "LaplacianShot",
    "LinearProbe",
    "LogisticRegression",
    "Matching",
    "MemberWeights",
    "Relation",
    "Ridge",
    "SimpleCNAPS",
    "SimpleShot",
    "SoftKMeans",
    "TransductiveFineTuning",
]
