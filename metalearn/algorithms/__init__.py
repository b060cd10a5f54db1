"""Meta-algorithms, one file each; every one says what happens in a single task."""

from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.base import MetaAlgorithm
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.protonet import ProtoNet
from metalearn.algorithms.reptile import Reptile

__all__ = ["ANIL", "MAML", "MetaAlgorithm", "ProtoNet", "Reptile"]
