"""The outer loop, and the one run shell with its stages."""

from metalearn.training.loop import fit
from metalearn.training.outer import Outer, meta_step
from metalearn.training.stage import Pace, Position, Stage

__all__ = ["Outer", "Pace", "Position", "Stage", "fit", "meta_step"]
