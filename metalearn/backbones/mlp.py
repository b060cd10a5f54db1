"""A multi-layer perceptron, as in MAML's sinusoid regression."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from metalearn.errors import UsageError


class MLP(nn.Module):
    """Linear layers with ReLU between.

    inputs: numbers in one flattened example. outputs: N logits or regression values; None
    leaves the last layer out. hidden: widths of the hidden layers (MAML section 5.1: 40, 40).

    Raises UsageError for a width below 1.
    """

    def __init__(self, inputs: int = 1, outputs: int | None = 1, hidden: Sequence[int] = (40, 40)):
        super().__init__()
        if any(width < 1 for width in hidden):
            raise UsageError(f"hidden={list(hidden)} must be 1 or more each")
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((inputs, *hidden)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        last = (inputs, *hidden)[-1]
        self.head = nn.Identity() if outputs is None else nn.Linear(last, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *X]` to `[B, outputs]`, or to features `[B, hidden[-1]]`."""
        return self.head(self.features(x.flatten(1)))
