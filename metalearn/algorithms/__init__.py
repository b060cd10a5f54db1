"""Meta-algorithms, one file each; every one says what happens in a single task."""

from metalearn.algorithms.alfa import ALFA
from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.boil import BOIL
from metalearn.algorithms.cavia import CAVIA
from metalearn.algorithms.in_context import InContext
from metalearn.algorithms.leo import LEO
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.mamlpp import MAMLpp
from metalearn.algorithms.metal import MeTAL
from metalearn.algorithms.metric import Metric
from metalearn.algorithms.proto_maml import ProtoMAML
from metalearn.algorithms.protonet import ProtoNet, SoftKMeans
from metalearn.algorithms.r2d2 import R2D2
from metalearn.algorithms.reptile import Reptile
from metalearn.algorithms.sharp_maml import SharpMAML
from metalearn.algorithms.tnet import TNet
from metalearn.algorithms.unicorn_maml import UnicornMAML
from metalearn.inner.protocol import MetaAlgorithm

__all__ = [
    "ALFA",
    "ANIL",
    "BOIL",
    "CAVIA",
    "LEO",
    "MAML",
    "R2D2",
    "InContext",
    "MAMLpp",
    "MeTAL",
    "MetaAlgorithm",
    "Metric",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "SharpMAML",
    "SoftKMeans",
    "TNet",
    "UnicornMAML",
]
