"""The inner loop: pure optimizer rules and the loop that applies them to one task."""

from metalearn.inner.loop import adapt, trajectory
from metalearn.inner.rules import InnerRule, lslr, meta_sgd, sgd

__all__ = ["InnerRule", "adapt", "lslr", "meta_sgd", "sgd", "trajectory"]
