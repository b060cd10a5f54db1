"""What a configuration makes of a network for one task: its head, what adapts, the loss."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.algorithms.losses import Loss, auto, present
from metalearn.backbones.adaptation import Adaptation, everything
from metalearn.backbones.heads import head_name
from metalearn.commands.building.arguments import make
from metalearn.commands.building.trial import evaluated
from metalearn.errors import UsageError
from metalearn.types import Batch, Inputs


@dataclass(frozen=True)
class TaskChoices:
    """What a configuration makes of a network for one task: its head, what adapts, the loss.

    head: from a network and the name of its head to the network with another; None for its own.
    """

    head: Callable[..., nn.Module] | None
    adaptation: Adaptation
    loss: Loss
    outputs: int | None
    seed: int

    def network(
        self, module: nn.Module, x: Inputs | None = None
    ) -> tuple[nn.Module, Collection[str] | None]:
        """`module`, its weights being loaded already, with the head and the adaptation; and the
        names of the weights that the inner loop adapts, None for all. x: some inputs, for a head
        that asks for an `example`. Raises UsageError."""
        path = None if self.outputs is None else head_name(module)
        with torch.random.fork_rng():
            if self.head is not None:
                torch.manual_seed(self.seed + 2)
                asks = "example" in inspect.signature(self.head).parameters
                module = self.head(module, path, **({"example": x} if asks else {}))
                path = path and head_name(module)
            # LoRA draws; not what the backbone drew.
            torch.manual_seed(self.seed + 1)
            module = self.adaptation.prepare(module, path)
        return module, self.adaptation.adapting(module, path)

    def check_answers(self, module: nn.Module, x: Inputs) -> None:
        """Raise UsageError where a loss of places does not get what it takes."""
        if not hasattr(self.loss, "shares"):
            return
        y, name = evaluated(module, x), type(self.loss).__name__.lower()
        sides = getattr(getattr(module, "head", None), "sides", self.loss.sides)
        if not isinstance(y, Tensor) or y.ndim != 4 or sides != self.loss.sides:
            raise UsageError(f"loss={name} needs answers at places of a map; use head={name}")

    def check_loss(self, support: Batch) -> None:
        """Raise UsageError for a loss that is not for the data: classes, or real targets.

        support: of one task, `[1, S, *X]`. Targets that are a dict with classes are for a loss of
        the user's.
        """
        dense, y = hasattr(self.loss, "shares"), support.y
        if dense:
            self.loss.check_form(y)
        elif isinstance(y, dict) and "label" not in y:
            raise UsageError(
                f"the targets are {', '.join(y)}, which this loss does not take; use "
                f"loss={'segmentation' if 'mask' in y else 'detection'}"
            )
        if isinstance(y, dict):
            return
        x = torch.zeros(2, 2)
        self.loss(x, Batch(x, x if support.y.is_floating_point() else torch.zeros(2).long()))


def task_choices(
    config: Mapping[str, Any], parameters: Collection[str], missing_classes: bool
) -> TaskChoices:
    """Every choice that is right or wrong whatever the network and the data. Raises UsageError.

    What a configuration older than a choice lacks is the usual one. parameters: what the algorithm
    takes. missing_classes: a task may have fewer classes than the network has outputs.
    """
    node = config.get("adaptation")
    adaptation: Adaptation = make(node, "adaptation") if node else everything()
    if adaptation.chosen is not None and adaptation.outer == "all" and "adapting" not in parameters:
        raise UsageError(
            f"adaptation={adaptation.name} says what the inner loop adapts, which this algorithm "
            "does not ask; use adaptation.outer=adapted to learn nothing else, or algorithm=maml"
        )
    head = make(config["head"], "head") if config.get("head") else None
    loss: Loss = make(config["loss"], "loss") if config.get("loss") else auto
    loss = present(loss) if missing_classes else loss
    return TaskChoices(head, adaptation, loss, config["outputs"], config["seed"])
