"""Class means that descend until the queries say much about the classes: TIM-GD.

    p_jn = softmax over n of  -temperature / 2 * |w_n - z_j|^2,   z_j = f(x_j) / |f(x_j)|
    min over w of  l * CE(support) - (H(mean over j of p_j) - a * mean over j of H(p_j))

from the class means on, by Adam; j goes over the queries and H is Shannon's entropy.

Boudiaf, Ziko, Rony, Dolz, Piantanida, Ben Ayed: Transductive Information Maximization for Few-Shot
Learning, 2020.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.classes import class_means, masked, membership, shares, widened
from metalearn.classifiers.descent import SHUT, descended, entropies_slope
from metalearn.classifiers.protocol import at_least, positive
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class TIM:
    """The paper's values.

    cross_entropy, conditional: l and a. order: of Tsallis's entropy in the place of H, as alpha-TIM
        has it; 1 is Shannon's. similarity: "squared" distances as above, or "cosine":
        temperature * cos(w_n, z_j).
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    Raises UsageError for a number that is too low.
    """

    steps: int = 1000
    rate: float = 1e-4
    temperature: float = 15.0
    cross_entropy: float = 0.1
    conditional: float = 0.1
    order: float = 1.0
    similarity: Literal["squared", "cosine"] = "squared"
    ways: int | None = None
    transductive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        for name in ("rate", "temperature", "order"):
            positive(name, getattr(self, name))
        at_least(0, steps=self.steps)

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]` and `counts` `[S]`, the support examples of each class."""
        x = unit(support.x)
        prototypes, counts = class_means(x, support)
        state = {"prototypes": prototypes, "counts": counts}
        if unlabelled is None:
            return state
        z, part, there = unit(unlabelled.x), shares(unlabelled), counts[: self.ways] > 0
        hot = membership(support._replace(weight=None), x.dtype)[: self.ways] * shares(support)
        hot, part = (
            widened(self.cross_entropy * hot, len(x) + len(z)),
            torch.cat([0 * x[:, 0], part]),
        )
        # A row a class, as fast as it gets; the temperature is in the features.
        every, shut = self.temperature * torch.cat([x, z]), SHUT * ~there.unsqueeze(1)
        of_scores = entropies_slope(hot, part, 1.0, self.conditional, self.order)

        def gradient(prototypes: Tensor) -> Tensor:
            slope = of_scores(self._scores(prototypes, every.T, shut))
            return self._pulled(prototypes, slope @ every, slope)

        moved = descended(gradient, prototypes, self.rate, self.steps, self.ways)
        return {**state, "prototypes": moved}

    def _scores(self, w: Tensor, z: Tensor, shut: Tensor | float = 0.0) -> Tensor:
        """`[N, B]` of prototypes `[N, D]` and features `[D, B]`, whose length is the temperature,
        without what all classes share; and what is added for each class, `[N, 1]`."""
        if self.similarity == "cosine":
            return unit(w) @ z + shut
        return w @ z + (shut - self.temperature / 2 * w.square().sum(1, keepdim=True))

    def _pulled(self, w: Tensor, along: Tensor, slope: Tensor) -> Tensor:
        """The gradient in the prototypes, from that in the scores and its product with the
        features, `[N, D]`."""
        if self.similarity == "cosine":
            squares = w.square().sum(1, keepdim=True)
            length = torch.where(squares > 0, squares, 1).sqrt()
            direction = w / length
            return (along - direction * (direction * along).sum(1, keepdim=True)) / length
        return along - self.temperature * slope.sum(1, keepdim=True) * w

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`, but for what all classes share."""
        scores = self._scores(state["prototypes"], self.temperature * unit(features).T)
        return masked(scores.T, state["counts"])
