"""R2D2: the head of every task is a ridge regression, solved in closed form.

    W = X^T (X X^T + lambda I)^-1 Y,   logits = alpha f(x) W + beta              (section 3.2)

with X the support features `[S, D]` and Y their classes, one-hot. The system is of the size of
the support set, however wide the features, and is differentiated exactly. lambda, alpha and beta
are learned with the network.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers, 2019.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metalearn import tree
from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.classifiers.classes import masked, membership
from metalearn.errors import UsageError
from metalearn.functional import PureModule, pure
from metalearn.inner.rules import InnerRule, sgd
from metalearn.types import Batch, Given, Inputs, Kind, Meta, Metrics, Params


@dataclass(frozen=True, eq=False)
class R2D2:
    """Nothing adapts by steps: the fast weights are the solution.

    module: any `nn.Module` from `[B, *X]` to features `[B, D]`.
    regularisation, scale, bias: where lambda (above 0), alpha and beta start, as
        `hyper["log_regularisation"]`, `hyper["scale"]` and `hyper["bias"]`. Softmax does not see
        beta; other losses may.
    """

    module: nn.Module
    regularisation: float = 50.0
    scale: float = 10.0
    bias: float = 0.0
    loss: Loss = cross_entropy
    steps: int = field(default=0, init=False)
    rule: InnerRule = field(default=sgd(0.0), init=False, repr=False)
    kinds: tuple[Kind, ...] = ("exact",)
    transductive: bool = field(default=False, init=False)
    net: PureModule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.regularisation > 0:
            raise UsageError(f"regularisation={self.regularisation} must be above 0")
        object.__setattr__(self, "net", pure(self.module))

    def init(self) -> Meta:
        """The module's own weights, log lambda, alpha and beta."""
        weights = tree.clone(self.net.params)
        like = next(iter(weights.values()))
        return Meta(
            init=weights,
            hyper={
                "log_regularisation": like.new_tensor(self.regularisation).log(),
                "scale": like.new_tensor(self.scale),
                "bias": like.new_tensor(self.bias),
            },
            buffers=tree.clone(self.net.buffers),
        )

    def _features(
        self, meta: Meta, fast: Params, x: Inputs, weight: Tensor | None = None
    ) -> Tensor:
        statistics = {n: t for n, t in fast.items() if n not in ("ridge", "counts")}
        weights = {**meta["buffers"], **meta["init"], **statistics}
        return self.net.apply(weights, x, weight).flatten(1)

    def begin(self, meta: Meta, given: Given) -> Params:
        """`ridge` `[D, S]`, W with a column a class, and `counts` `[S]`, the support examples of
        each class; the columns from N on are 0."""
        support = given.support
        features = self._features(meta, {}, support.x, support.weight)
        hot = membership(support._replace(weight=None), features.dtype)
        if support.weight is not None:
            # The square error of an example counts by its weight: padding is a row of zeros.
            root = support.weight.sqrt()
            features, hot = features * root.unsqueeze(1), hot * root
        kernel = features @ features.T
        eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        system = kernel + meta["hyper"]["log_regularisation"].exp() * eye
        # Not linalg.solve: both ways it waits for a GPU to say whether it is singular, and lambda
        # rules that out.
        lower: Tensor = torch.linalg.cholesky_ex(system)[0]
        half = torch.linalg.solve_triangular(lower, hot.T, upper=False)
        solved = torch.linalg.solve_triangular(lower.mT, half, upper=True)
        return {"ridge": features.T @ solved, "counts": hot.sum(1)}

    def inner_loss(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Tensor:
        """The support set's own loss under its solution; no step descends on it."""
        return self.outer_loss(meta, fast, given.support)[0]

    def finish(self, meta: Meta, fast: Params, given: Given, step: int | Tensor) -> Params:
        """W, and the support set's statistics where the norm layers ask for them."""
        support = given.support
        weights = {**meta["buffers"], **meta["init"]}
        return {**fast, **self.net.support_statistics(weights, support.x, support.weight)}

    def _logits(self, meta: Meta, fast: Params, features: Tensor) -> Tensor:
        hyper = meta["hyper"]
        return masked(hyper["scale"] * features @ fast["ridge"] + hyper["bias"], fast["counts"])

    def outer_loss(self, meta: Meta, fast: Params, query: Batch) -> tuple[Tensor, Metrics]:
        """The loss of the queries under the solution."""
        features = self._features(meta, fast, query.x, query.weight)
        return self.loss(self._logits(meta, fast, features), query)

    def step_weights(self, meta: Meta) -> None:
        """None: the query loss at the end alone."""

    def predict(self, meta: Meta, fast: Params, x: Inputs) -> Tensor:
        """Logits `[B, S]` for `x` `[B, *X]`: one column a class, unused columns lowest."""
        return self._logits(meta, fast, self._features(meta, fast, x))
