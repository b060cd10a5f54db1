"""R2D2: the head of every task is a ridge regression, solved in closed form.

    W = X^T (X X^T + lambda I)^-1 Y,   logits = alpha f(x) W + beta              (section 3.2)

with X the support features `[S, D]` and Y their classes, one-hot. lambda, alpha and beta are
learned with the network.

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers, 2019.
"""

from torch import nn

from metalearn.algorithms.losses import Loss, cross_entropy
from metalearn.algorithms.metric import Metric
from metalearn.classifiers import Ridge


def R2D2(  # a method of the field, named as the others are
    module: nn.Module,
    regularisation: float = 50.0,
    scale: float = 10.0,
    bias: float = 0.0,
    loss: Loss = cross_entropy,
) -> Metric:
    """Nothing adapts by steps: the fast weights are the solution.

    module: any `nn.Module` from `[B, *X]` to features `[B, D]`.
    regularisation, scale, bias: where lambda (above 0), alpha and beta start, as
        `hyper["log_regularisation"]`, `hyper["scale"]` and `hyper["bias"]`. Softmax does not see
        beta; other losses may.
    """
    return Metric(module, Ridge(regularisation, scale, bias), loss)
