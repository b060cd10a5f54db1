"""Class means refined by what is not labelled: soft k-means from the prototypes on.

    z_jn = softmax over n of  -|f(x_j) - c_n|^2 / temperature       for the unlabelled x_j
    c_n <- (sum of f(x_i) over class n + sum over j of z_jn f(x_j)) / (K_n + sum over j of z_jn)

with K_n the support examples of class n (eq. 3). Where the unlabelled examples are the queries
this is transductive: a prediction depends on the queries beside it.

Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle, Zemel: Meta-Learning for
Semi-Supervised Few-Shot Classification, 2018, section 3.1.1.
"""

from dataclasses import dataclass, field

from torch import Tensor

from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import class_means, masked
from metalearn.classifiers.protocol import log_temperature, positive, temperature
from metalearn.errors import check_whole
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class SoftKMeans:
    """Prototypes after `refinements` rounds; without unlabelled examples those of `Centroid`.

    refinements: 1 or more, 1 in the paper. temperature, learn_temperature: of the assignment and
        of the logits, 1 in the paper; otherwise as in `Centroid`. Raises UsageError.
    """

    refinements: int = 1
    temperature: float = 1.0
    learn_temperature: bool = False
    transductive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        check_whole("refinements", self.refinements, 1)

    def hyper(self, features: int | None = None) -> Params:
        """log temperature, where it is learned."""
        return log_temperature(self.temperature, self.learn_temperature)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]` and `counts` `[S]`, the support examples of each class; those
        of rows from N on are 0."""
        means, counts = class_means(support.x, support)
        state = {"prototypes": means, "counts": counts}
        if unlabelled is None:
            return state
        x, _, weight = unlabelled
        labelled = means * counts.unsqueeze(1)
        for _ in range(self.refinements):
            share = self.logits(hyper, state, x).softmax(1)
            share = share if weight is None else share * weight.unsqueeze(1)
            total = (counts + share.sum(0)).clamp(min=1)  # 0 for a class that is not there
            state = {**state, "prototypes": (labelled + share.T @ x) / total.unsqueeze(1)}
        return state

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        distances = squared_distances(features, state["prototypes"])
        return masked(-distances / temperature(hyper, self.temperature), state["counts"])
