"""What a configuration makes of a network for one task: its head, what adapts, the loss."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from metalearn.algorithms.losses import Loss, auto, present
from metalearn.backbones.adaptation import Adaptation, everything
from metalearn.backbones.heads import head_name
from metalearn.commands.arguments import make
from metalearn.commands.episodes import sampling
from metalearn.errors import UsageError
from metalearn.types import Batch


def build_adaptation(config: Mapping[str, Any]) -> Adaptation:
    """What adapts; everything in a configuration older than the choice. Raises UsageError."""
    node = config.get("adaptation")
    return make(node, "adaptation") if node else everything()


def task_network(
    config: Mapping[str, Any], module: nn.Module
) -> tuple[nn.Module, Collection[str] | None]:
    """`module` with the head and the adaptation of `config`, its weights being loaded already;
    and the names of the weights that the inner loop adapts, None for all. Raises UsageError."""
    path = None if config["outputs"] is None else head_name(module)
    if config.get("head"):
        module = make(config["head"], "head")(module, path)
        path = path and head_name(module)
    adaptation = build_adaptation(config)
    with torch.random.fork_rng():
        # LoRA draws; not what the backbone drew.
        torch.manual_seed(config["seed"] + 1)
        module = adaptation.prepare(module, path)
    return module, adaptation.adapting(module, path)


def build_loss(config: Mapping[str, Any], images: bool) -> Loss:
    """The loss of both loops; the usual one in a configuration older than the choice."""
    loss: Loss = make(config["loss"], "loss") if config.get("loss") else auto
    return present(loss) if images and sampling(config)["sizes"] else loss


def check_loss(config: Mapping[str, Any], images: bool) -> None:
    """Raise UsageError for a loss that is not for the data: classes (`images`) or real targets."""
    x = torch.zeros(2, 2)
    y = torch.zeros(2, dtype=torch.int64) if images else x
    build_loss(config, images)(x, Batch(x, y))


def check_task(config: Mapping[str, Any], parameters: Collection[str]) -> None:
    """Raise UsageError for a choice that is wrong whatever the network and the data.

    parameters: what the algorithm takes.
    """
    adaptation = build_adaptation(config)
    if adaptation.chosen is not None and adaptation.outer == "all" and "adapting" not in parameters:
        raise UsageError(
            f"adaptation={adaptation.name} says what the inner loop adapts, which this algorithm "
            "does not ask; use adaptation.outer=adapted to learn nothing else, or algorithm=maml"
        )
    for name in ("head", "loss"):
        if config.get(name):
            make(config[name], name)
