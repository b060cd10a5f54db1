"""What a configuration says of pruning and of attacks, with every mistake one line."""

from collections.abc import Mapping
from typing import Any

from metalearn.algorithms.adversarial import PGD
from metalearn.backbones.channels import Channels
from metalearn.commands.building.arguments import factory, make
from metalearn.commands.building.episodes import Data
from metalearn.engine.strategy import ForeignStrategy, Strategy
from metalearn.errors import UsageError
from metalearn.training.pruning import Pruning


def pruning_of(config: Mapping[str, Any]) -> Pruning | Channels | None:
    """That of the configuration; None without. Raises UsageError."""
    node, steps = config.get("pruning"), config["training"]["steps"]
    if not node:
        return None
    if node.get("end", 0) is None:
        node = {**node, "end": max(node.get("begin", 1), steps // 2)}
    made = make(node, "pruning")
    if not isinstance(made, Channels) and (last := made.done()) > steps:
        raise UsageError(
            f"pruning reaches its sparsity before meta-step {last}, but training.steps={steps}; "
            f"use pruning.end={max(1, steps // 2)}"
        )
    return made


def attack_of(config: Mapping[str, Any], data: Data) -> PGD | None:
    """That of the configuration, told how images are normalised. Raises UsageError."""
    if not config.get("adversarial"):
        return None
    if not (data.images and data.classes):
        raise UsageError("adversarial is of images with classes; use adversarial=null")
    if data.task != "classification":
        raise UsageError(f"adversarial is not for task={data.task}; use adversarial=null")
    images = config.get("images") or {}
    normalised = {name: images.get(name) for name in ("mean", "std")}
    return factory(config["adversarial"], "adversarial")(**normalised)


def check_pruning(
    pruning: Pruning | Channels | None, gradient: Strategy | ForeignStrategy, name: str
) -> None:
    """Raise UsageError where a schedule of masks does not go with a strategy, `name` in words."""
    if pruning is None or isinstance(pruning, Channels):
        return
    if not hasattr(gradient, "task"):
        raise UsageError(
            f"pruning: gradient={name} runs on another package's engine, which knows of no masks; "
            "use gradient=adjoint, or pruning=channels"
        )
    if pruning.wants_gradient and gradient.kind == "displacement":
        raise UsageError(
            f"pruning=snip needs the gradient of a loss, which gradient={name} is not; use "
            "pruning=magnitude or iht"
        )
