"""Meta-gradient strategies, values to pass in: how the outer gradient is taken."""

from metalearn.gradients.adjoint import Adjoint
from metalearn.gradients.annealed import Annealed
from metalearn.gradients.bootstrapped import Bootstrapped
from metalearn.gradients.checkpointed import Checkpointed
from metalearn.gradients.displacement import Displacement
from metalearn.gradients.evolution import Evolution
from metalearn.gradients.implicit import Implicit
from metalearn.gradients.truncated import FirstOrder, Truncated
from metalearn.gradients.unroll import Unroll

__all__ = [
    "Adjoint",
    "Annealed",
    "Bootstrapped",
    "Checkpointed",
    "Displacement",
    "Evolution",
    "FirstOrder",
    "Implicit",
    "Truncated",
    "Unroll",
]
