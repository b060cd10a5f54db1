"""Ridge regression to the one-hot classes, solved in closed form.

    W = X^T (X X^T + lambda I)^-1 Y,   logits = alpha f(x) W + beta              (section 3.2)

with X the support features `[S, D]` and Y their classes, one-hot. The system is of the size of
the support set, however wide the features, and is differentiated exactly.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers, 2019.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.classifiers.classes import masked, membership
from metalearn.classifiers.protocol import log_of, positive
from metalearn.types import Batch, Params


@dataclass(frozen=True)
class Ridge:
    """lambda, alpha and beta are meta-learned.

    regularisation, scale, bias: where lambda (above 0), alpha and beta start, as
        `hyper["log_regularisation"]`, `hyper["scale"]` and `hyper["bias"]`. Softmax does not see
        beta; other losses may. Raises UsageError.
    """

    regularisation: float = 50.0
    scale: float = 10.0
    bias: float = 0.0
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        positive("regularisation", self.regularisation)

    def hyper(self, features: int | None = None) -> Params:
        """log lambda, alpha and beta."""
        return {
            "log_regularisation": log_of(self.regularisation),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            "bias": torch.tensor(self.bias, dtype=torch.float64),
        }

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`ridge` `[D, S]`, W with a column a class, and `counts` `[S]`, the support examples of
        each class; the columns from N on are 0."""
        features, _, weight = support
        hot = membership(support._replace(weight=None), features.dtype)
        if weight is not None:
            # The square error of an example counts by its weight: padding is a row of zeros.
            root = weight.sqrt()
            features, hot = features * root.unsqueeze(1), hot * root
        kernel = features @ features.T
        eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        system = kernel + hyper["log_regularisation"].exp() * eye
        # Not linalg.solve: both ways it waits for a GPU to say whether it is singular, and lambda
        # rules that out.
        lower: Tensor = torch.linalg.cholesky_ex(system)[0]
        half = torch.linalg.solve_triangular(lower, hot.T, upper=False)
        solved = torch.linalg.solve_triangular(lower.mT, half, upper=True)
        return {"ridge": features.T @ solved, "counts": hot.sum(1)}

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(hyper["scale"] * features @ state["ridge"] + hyper["bias"], state["counts"])
