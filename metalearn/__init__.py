"""Meta-learning in PyTorch with exact second-order gradients."""

from metalearn import algorithms, backbones, classifiers, gradients, inner
from metalearn.evaluation.protocol import evaluate
from metalearn.inner.loop import adapt
from metalearn.types import Batch, Episodes, Meta

__version__ = "0.1.0"

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
