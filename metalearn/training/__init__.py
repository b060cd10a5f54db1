"""The outer loop around the engine."""

from metalearn.training.outer import Outer, meta_step

__all__ = ["Outer", "meta_step"]
