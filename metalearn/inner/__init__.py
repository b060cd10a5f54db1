"""The inner loop: pure optimizer rules and the loop that applies them to one task."""

from metalearn.inner.adaptive import adam, adamw, rmsprop
from metalearn.inner.alfa import alfa
from metalearn.inner.learned import lslr, meta_curvature, meta_sgd
from metalearn.inner.loop import adapt, detached_gradient, trajectory
from metalearn.inner.rules import InnerRule, at_step, momentum, sgd

__all__ = [
    "InnerRule",
    "adam",
    "adamw",
    "adapt",
    "alfa",
    "at_step",
    "detached_gradient",
    "lslr",
    "meta_curvature",
    "meta_sgd",
    "momentum",
    "rmsprop",
    "sgd",
    "trajectory",
]
