"""Evaluation: finite episodes to a mean with its interval, tables and pictures."""

from metalearn.evaluation.protocol import EvalReport, evaluate
from metalearn.evaluation.statistics import Interval, mean_interval, paired_interval

__all__ = ["EvalReport", "Interval", "evaluate", "mean_interval", "paired_interval"]
