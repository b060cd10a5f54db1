"""Norm policies of few-shot networks: whose statistics normalise a query.

    transductive  the batch's own: the queries of an episode see one another (MAML)
    support       the support set's, for support and queries (inductive)
    running       running averages, constants of both loops, which follow the support images of
                  the meta-batches (inductive)
    frozen        running averages as they came with pre-trained weights (inductive)
    group         none of the batch's: eight groups of channels (inductive)
    none          no norm layer

The policy stands beside every accuracy, because it is worth several points.
"""

from typing import Literal, get_args

from torch import nn

from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm, InstanceNorm, LayerNorm, statistics_of
from metalearn.functional.torch_private import BatchNormBase

NormPolicy = Literal["transductive", "support", "running", "frozen", "group", "none"]


def norm2d(policy: NormPolicy, features: int) -> nn.Module:
    """The norm layer for `[B, features, H, W]`; raises UsageError for an unknown policy."""
    match policy:
        case "transductive" | "support" | "running":
            return BatchNorm(features, policy)
        case "frozen":
            return BatchNorm(features, "running", momentum=0.0)
        case "group":
            return nn.GroupNorm(8 if features % 8 == 0 else 1, features)
        case "none":
            return nn.Identity()
    raise UsageError(f"norm={policy!r} is not known; use {', '.join(get_args(NormPolicy))}")


def inductive(module: nn.Module) -> bool:
    """Whether an image's features do not depend on the images beside it."""
    return {"transductive", "support"}.isdisjoint(describe(module).split("+"))


def describe(module: nn.Module) -> str:
    """The norm policies of any network made pure, such as "transductive" or "group+layer"."""
    found = set()
    for part in module.modules():
        match part:
            case BatchNorm():
                still = part.statistics == "running" and not part.momentum
                found.add("frozen" if still else part.statistics)
            case BatchNormBase():  # one with a forward of its own
                kept = "running" if statistics_of(part) else "frozen"
                averages = not part.training and part.running_mean is not None
                found.add(kept if averages else "transductive")
            case nn.GroupNorm():
                found.add("group")
            case LayerNorm() | nn.LayerNorm():
                found.add("layer")
            case InstanceNorm():
                found.add("instance")
    return "+".join(sorted(found)) or "none"
