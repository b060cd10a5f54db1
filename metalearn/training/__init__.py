"""The outer loop, and the one run shell with its stages."""

from metalearn.training.outer import Outer, meta_step

__all__ = ["Outer", "meta_step"]
