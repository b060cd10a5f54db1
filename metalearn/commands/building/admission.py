"""What a configuration asks of pre-trained weights: `backbone.admit`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from metalearn.backbones.admission import STRICT, Admission
from metalearn.backbones.weights import Weights
from metalearn.commands.building.arguments import check_node, make
from metalearn.episodes import Manifest
from metalearn.errors import UsageError
from metalearn.evaluation.admission import check_above_untrained

OUTPUTS = ("ways", "outputs")  # the names that backbones give to the width of their head


def admission(node: Mapping[str, Any]) -> Admission | None:
    """What `backbone.admit` asks of the weights; None where it is null. Raises UsageError."""
    asked = node.get("admit")
    if asked is None:
        return None
    if asked != STRICT and not isinstance(asked, Mapping):
        raise UsageError(f"backbone.admit={asked} must be {STRICT}, null, or {{criterion: value}}")
    own = {} if asked == STRICT else asked
    whole = {"_target_": f"{Admission.__module__}.{Admission.__qualname__}", **own}
    check_node(whole, "backbone.admit")
    return make(whole, "backbone.admit")


def bare(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the same network without a head, where it can be had so."""
    return {**node, **{name: None for name in OUTPUTS if name in node}}


def check_worth(
    node: Mapping[str, Any],
    weights: Weights | None,
    build: Callable[[dict[str, Any], Weights | None], nn.Module],
    manifest: Callable[[int], Manifest],
    device: torch.device,
) -> None:
    """Raise UsageError where `backbone.admit` asks that the weights are better than random ones,
    and they are not.

    build: from a node and its weights to the network. manifest: from a number to so many episodes
    of validation classes.
    """
    asked = admission(node)
    if asked is None or weights is None or not asked.above_untrained:
        return
    given, random = (build(bare(node), each) for each in (weights, None))
    episodes = manifest(asked.above_untrained)
    check_above_untrained(given, random, episodes, device, weights.source)
