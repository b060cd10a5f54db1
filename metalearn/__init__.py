"""Meta-learning in PyTorch with exact second-order gradients."""

__version__ = "0.1.0"
# Read by metalearn_start, and first of all, since `metalearn.errors` asks for it.
__distribution__ = "metalearn-torch"

# First: from here on Ctrl-C in an import is no traceback.
import metalearn.runtime.signals  # noqa: F401

# isort: split
from metalearn import algorithms, backbones, classifiers, gradients, inner
from metalearn.engine import Engine
from metalearn.evaluation.protocol import evaluate
from metalearn.inner.loop import adapt
from metalearn.training.outer import Outer, meta_step
from metalearn.types import Batch, Episodes, Given, Meta

__all__ = [
    "Batch",
    "Engine",
    "Episodes",
    "Given",
    "Meta",
    "Outer",
    "adapt",
    "algorithms",
    "backbones",
    "classifiers",
    "evaluate",
    "gradients",
    "inner",
    "meta_step",
]
