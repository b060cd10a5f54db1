"""Nearest class mean of transformed features, with nothing learned across tasks.

    z = f(x)  |  f(x) / |f(x)|  |  (f(x) - m) / |f(x) - m|     (UN, L2N, CL2N; section 3)
    logits_n = -|z - c_n|^2,   c_n = mean of z over the support examples of class n

with m the mean of the features of all training examples of the base classes.

Wang, Chao, Weinberger, van der Maaten: SimpleShot: Revisiting Nearest-Neighbor Classification for
Few-Shot Learning, 2019.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor

from metalearn.backbones.heads import unit
from metalearn.classifiers.centroid import squared_distances
from metalearn.classifiers.classes import class_means, masked
from metalearn.errors import UsageError
from metalearn.types import Batch, Params

_TRANSFORMS = ("plain", "l2", "centred_l2")


@dataclass(frozen=True)
class SimpleShot:
    """transform: "plain" (UN), "l2" (L2N) or "centred_l2" (CL2N).

    centre: m `[D]`, see `with_base`; None stands for 0, which makes "centred_l2" as "l2".
    Raises UsageError for another transform.
    """

    transform: Literal["plain", "l2", "centred_l2"] = "centred_l2"
    centre: Tensor | None = field(default=None, compare=False, repr=False)
    transductive: bool = field(default=False, init=False)
    of_tasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.transform not in _TRANSFORMS:
            known = " or ".join(_TRANSFORMS)
            raise UsageError(f"transform={self.transform!r} is not known; use {known}")

    def with_base(self, features: Tensor, labels: Tensor) -> "SimpleShot":
        """The same with the mean of `features` `[n, D]` as its centre."""
        return replace(self, centre=features.mean(0))

    def hyper(self, features: int | None = None) -> Params:
        """Nothing is meta-learned."""
        return {}

    def _transformed(self, x: Tensor) -> Tensor:
        if self.transform == "centred_l2" and self.centre is not None:
            x = x - self.centre.to(x)
        return x if self.transform == "plain" else unit(x)

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`prototypes` `[S, D]` and `counts` `[S]`; the rows from N on are 0."""
        prototypes, counts = class_means(self._transformed(support.x), support)
        return {"prototypes": prototypes, "counts": counts}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        distances = squared_distances(self._transformed(features), state["prototypes"])
        return masked(-distances, state["counts"])
