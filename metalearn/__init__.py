"""Meta-learning in PyTorch with exact second-order gradients."""

__version__ = "0.1.0"
# Read by metalearn_start, and first of all, since `metalearn.errors` asks for it.
__distribution__ = "metalearn-torch"

from metalearn import algorithms, backbones, classifiers, gradients, inner
from metalearn.evaluation.protocol import evaluate
from metalearn.inner.loop import adapt
from metalearn.types import Batch, Episodes, Meta

__all__ = [
    "Batch",
    "Episodes",
    "Meta",
    "adapt",
    "algorithms",
    "backbones",
    "classifiers",
    "evaluate",
    "gradients",
    "inner",
]
