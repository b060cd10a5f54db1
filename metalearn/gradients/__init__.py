"""Meta-gradient strategies, values to pass in: how the outer gradient is taken."""

from metalearn.gradients.adjoint import Adjoint
from metalearn.gradients.base import MetaGradient
from metalearn.gradients.first_order import FirstOrder
from metalearn.gradients.reptile import Reptile
from metalearn.gradients.unroll import Unroll

__all__ = ["Adjoint", "FirstOrder", "MetaGradient", "Reptile", "Unroll"]
