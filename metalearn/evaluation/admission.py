"""Whether pre-trained weights are worth more than random ones: measured, on validation classes."""

import torch
from torch import nn

from metalearn import tree
from metalearn.algorithms import Metric
from metalearn.classifiers import Cosine
from metalearn.episodes import Manifest
from metalearn.errors import UsageError
from metalearn.evaluation.on_features import evaluate_once
from metalearn.evaluation.statistics import Interval, paired_interval


def check_above_untrained(
    trained: nn.Module, untrained: nn.Module, manifest: Manifest, device: torch.device, source: str
) -> Interval:
    """By how much the nearest centroid is better by `trained` than by `untrained`, both without a
    head, on the same episodes.

    Raises UsageError where the 95% interval of the paired difference does not lie above 0.
    """
    reports = []
    for module in (trained, untrained):
        algo = Metric(module, Cosine())
        meta = tree.map_meta(lambda t: t.to(device), algo.init())
        reports.append(evaluate_once(algo, meta, manifest, device=device))
    ours, theirs = reports
    found = paired_interval(ours.accuracies, theirs.accuracies)
    if not found.mean - found.half_width > 0:
        raise UsageError(
            f"{source} is not admitted: nearest centroid reaches {ours.accuracy.mean:.1%} by it on "
            f"{found.count} validation episodes and {theirs.accuracy.mean:.1%} by random weights, "
            f"{100 * found.mean:+.1f} ± {100 * found.half_width:.1f} points; take other weights, "
            "or set backbone.admit.above_untrained"
        )
    return found
