"""Meta-gradient strategies, values to pass in: how the outer gradient is taken."""

from metalearn.engine.strategy import MetaGradient
from metalearn.gradients.adjoint import Adjoint
from metalearn.gradients.checkpointed import Checkpointed
from metalearn.gradients.first_order import FirstOrder
from metalearn.gradients.implicit import Implicit
from metalearn.gradients.reptile import Reptile
from metalearn.gradients.truncated import Truncated
from metalearn.gradients.unroll import Unroll

__all__ = [
    "Adjoint",
    "Checkpointed",
    "FirstOrder",
    "Implicit",
    "MetaGradient",
    "Reptile",
    "Truncated",
    "Unroll",
]
