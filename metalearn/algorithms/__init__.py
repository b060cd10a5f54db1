"""Meta-algorithms, one file each; every one says what happens in a single task."""

from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.metric import Metric
from metalearn.algorithms.proto_maml import ProtoMAML
from metalearn.algorithms.protonet import ProtoNet, SoftKMeans
from metalearn.algorithms.r2d2 import R2D2
from metalearn.algorithms.reptile import Reptile
from metalearn.inner.protocol import MetaAlgorithm

__all__ = [
    "ANIL",
    "MAML",
    "R2D2",
    "MetaAlgorithm",
    "Metric",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "SoftKMeans",
]
