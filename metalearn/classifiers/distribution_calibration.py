"""Few examples, and many more drawn around them as the nearest base classes would vary.

    m = (z_i + sum of the means of the k nearest base classes) / (k + 1),  z = f(x)^power   (eq. 6)
    V = (sum of the covariances of these) / k + alpha, for each support example i           (eq. 6)
    logistic regression on the support examples and on draws from N(m, V), labelled y_i

Yang, Liu, Xu: Free Lunch for Few-Shot Learning: Distribution Calibration, 2021. They draw 750 / K
for each of the K examples of a class.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.logistic_regression import LogisticRegression
from metalearn.classifiers.protocol import positive
from metalearn.errors import UsageError
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class DistributionCalibration:
    """samples: drawn for each support example. nearest: k. alpha: added to every entry of V. power:
    above 0; of a negative feature -|f|^power. strength, ways: as in `LogisticRegression`.

    means `[M, D]`, draws `[M, samples, D]`: of the base classes, see `with_base`; without them
    nothing is drawn. seed: of the draws. Raises UsageError.
    """

    samples: int = 10
    nearest: int = 2
    alpha: float = 0.21
    power: float = 0.5
    strength: float = 1.0
    ways: int | None = None
    seed: int = 0
    means: Tensor | None = field(default=None, compare=False, repr=False)
    draws: Tensor | None = field(default=None, compare=False, repr=False)
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        positive("power", self.power)
        positive("strength", self.strength)
        if min(self.samples, self.nearest) < 1 or not self.alpha >= 0:
            told = f"samples={self.samples} and nearest={self.nearest} must be 1 or more"
            raise UsageError(f"{told}, alpha={self.alpha} 0 or more")

    def with_base(self, features: Tensor, labels: Tensor) -> "DistributionCalibration":
        """The same with the means of the classes of `features` `[n, D]`, and draws around 0 with
        the covariance of each. Raises UsageError for fewer than k classes."""
        of_class = [features[labels == label].double() for label in labels.unique()]
        if len(of_class) < self.nearest:
            raise UsageError(f"nearest={self.nearest} of {len(of_class)} base classes; use fewer")
        g = torch.Generator().manual_seed(self.seed)
        # What all entries of V have in common, alpha, is one number for all of a draw.
        shared = (self.alpha / self.nearest) ** 0.5 * torch.randn(self.samples, 1, generator=g)
        draws = []
        for x in of_class:
            apart = (x - x.mean(0)) / max(len(x) - 1, 1) ** 0.5
            draws.append(torch.randn(self.samples, len(x), generator=g).to(x) @ apart)
        means = torch.stack([x.mean(0) for x in of_class])
        return replace(self, means=means, draws=torch.stack(draws) + shared.to(means))

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """As in `LogisticRegression`."""
        x, y, weight = _power(support.x, self.power), support.labels, support.weight
        size, k = len(x), self.nearest
        if self.means is not None and self.draws is not None:
            means, draws = self.means.to(x), self.draws.to(x)
            near = squared_distances(x.detach(), means).topk(k, largest=False)[1]
            centres = (x + means[near].sum(1)) / (k + 1)
            around = centres.unsqueeze(1) + draws[near].sum(1) / k**0.5
            x = torch.cat([x, around.flatten(0, 1)])
            y = torch.cat([y, y.repeat_interleave(self.samples)])
            if weight is not None:
                weight = torch.cat([weight, weight.repeat_interleave(self.samples)])
        head = LogisticRegression(self.strength, ways=min(self.ways or size, size))
        state = head.fit(hyper, Batch(x, y, weight))
        return {name: t[..., :size] for name, t in state.items()}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return LogisticRegression().logits(hyper, state, _power(features, self.power))


def _power(x: Tensor, power: float, eps: float = 1e-6) -> Tensor:
    """x^power, -|x|^power below 0, moved by eps so that it has a derivative at 0."""
    return x.sign() * ((x.abs() + eps) ** power - eps**power)
