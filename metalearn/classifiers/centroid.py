"""The nearest class mean, by squared Euclidean distance.

    c_n = mean of f(x) over the support examples of class n                          (eq. 1)
    p(y = n | x) = softmax over n of  -|f(x) - c_n|^2 / temperature                  (eq. 2)

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning, 2017.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from metalearn.backbones.heads import squared_length
from metalearn.classifiers.classes import class_means, masked
from metalearn.classifiers.protocol import log_temperature, positive, temperature
from metalearn.types import Batch, Params


def squared_distances(features: Tensor, means: Tensor) -> Tensor:
    """|f - c|^2 of features `[..., Q, D]` and means `[..., S, D]`: `[..., Q, S]`."""
    # As |f|^2 - 2 f c + |c|^2, which takes no [Q, S, D]; about one of the means, where it loses no
    # digits. Not about their mean: those of classes that are not there are 0.
    centre = means.narrow(-2, 0, 1)
    features, means = features - centre, means - centre
    # In memory a row a class, in which a softmax and a maximum over classes are several times as
    # fast.
    squares = squared_length(features).mT + squared_length(means)
    return (squares.to(features.dtype) - 2 * means @ features.mT).mT


@dataclass(frozen=True)
class Centroid:
    """Nothing is fitted but the class means.

    temperature: divides the logits, above 0. learn_temperature: meta-learn it, as
        `hyper["log_temperature"]`. Raises UsageError.
    """

    temperature: float = 1.0
    learn_temperature: bool = False
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
        prototypes, counts = class_means(support.x, support)
        return {"prototypes": prototypes, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        distances = squared_distances(features, state["prototypes"])
        return masked(-distances / temperature(hyper, self.temperature), state["counts"])
