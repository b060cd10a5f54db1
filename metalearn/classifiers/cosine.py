"""The class mean at the smallest angle.

    c_n = mean of f(x) over the support examples of class n                          (eq. 1)
    p(y = n | x) = softmax over n of  cos(f(x), c_n) / temperature                   (eq. 2)

Chen, Liu, Xu, Darrell, Wang: Meta-Baseline: Exploring Simple Meta-Learning for Few-Shot Learning,
2021, whose learned scale is 1 / temperature.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.classes import class_means, cosines, masked
from metalearn.classifiers.protocol import log_temperature, positive, temperature
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class Cosine:
    """Nothing is fitted but the class means.

    temperature, learn_temperature: as in `Centroid`.
    of_unit_length: a mean is that of features of unit length, so that each counts the same;
        False takes it of the features as they are, as eq. 1 does.
    """

    temperature: float = 1.0
    learn_temperature: bool = False
    of_unit_length: bool = True
    transductive: bool = field(default=False, init=False)
    of_tasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def hyper(self, features: int | None = None) -> Params:
        """log temperature, where it is learned."""
        return log_temperature(self.temperature, self.learn_temperature)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]` and `counts` `[S]`, the support examples of each class; those
        of rows from N on are 0."""
        features = unit(support.x) if self.of_unit_length else support.x
        prototypes, counts = class_means(features, support)
        return {"prototypes": prototypes, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        similarity = cosines(features, state["prototypes"])
        return masked(similarity / temperature(hyper, self.temperature), state["counts"])
