"""The multi-class support vector machine of Crammer and Singer, at its optimum.

    min over W  |W|^2 / 2 + C * sum over i of  max over n of (w_n f_i - w_{y_i} f_i + [n != y_i])

by its dual, over A `[N, S]` with W = A X (eq. 8):

    min  sum over n of  a_n K a_n / 2  -  sum over i of a_{y_i, i},   K = X X^T
    a_{n, i} <= C [n = y_i],   sum over n of a_{n, i} = 0

found for all tasks of a batch at once by an interior point method (Mehrotra's predictor and
corrector): each step solves N systems of size S. The answer is one more Newton step at the optimum,
whose derivative in K is that of the optimum itself. logits = scale * f(x) W^T.

Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization, 2019
(MetaOptNet), section 3.2. Their code adds 1 to the diagonal of K; this does not.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metalearn import tree
from metalearn.classifiers.classes import class_systems, masked, membership, widened
from metalearn.classifiers.protocol import positive
from metalearn.errors import UsageError
from metalearn.types import Batch, Params

_CENTRE = 1e-11  # slack times multiplier at the end, of the size of A
_RIDGE = 1e-9  # of the mean of K's diagonal, added to it: where K is singular, less is noise


@dataclass(frozen=True)
class SVM:
    """strength: C, above 0; 0.1 in the paper. scale: where the learned scale starts.

    steps: of the interior point method. ways: N where it is known, the most of all tasks; None
    takes S for it, which costs more. An example's C is multiplied by its weight.
    """

    strength: float = 0.1
    scale: float = 1.0
    steps: int = 11
    ways: int | None = None
    transductive: bool = field(default=False, init=False)
    of_tasks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("strength", self.strength)
        if self.steps < 1:
            raise UsageError(f"steps={self.steps} must be 1 or more")

    def hyper(self, features: int | None = None) -> Params:
        """The scale."""
        return {"scale": torch.tensor(self.scale, dtype=torch.float64)}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`weight` `[D, S]`, a column a class, and `counts` `[S]`, the support examples of each
        class; the columns from N on are 0."""
        x, size, dtype = support.x.double(), support.x.shape[-2], support.x.dtype
        counts = membership(support, x.dtype).sum(-1)
        columns = counts.shape[-1]
        ways = min(self.ways or columns, columns)
        hot = membership(support._replace(weight=None), x.dtype)[..., :ways, :]
        there = (counts[..., :ways] > 0).to(x.dtype).unsqueeze(-1)
        weight = torch.ones_like(x[..., 0]) if support.weight is None else support.weight.double()
        real, weight = weight > 0, weight.unsqueeze(-2)
        # Padding has features of 0, so no part in W, and room on both sides of its sum.
        x, hot = torch.where(real.unsqueeze(-1), x, 0), hot * real.unsqueeze(-2)
        kernel = x @ x.mT
        # In units of A in which the mean of K's diagonal is 1, so that no scale of the features
        # costs digits.
        scale = kernel.detach().diagonal(dim1=-2, dim2=-1).sum(-1) / real.sum(-1)
        scale = torch.where(scale > 0, scale, 1)[..., None, None]
        kernel, strength = (
            kernel / scale + _RIDGE * torch.eye(size).to(kernel),
            self.strength * scale,
        )
        unit = strength.clamp(max=1)
        box = strength * torch.where(real.unsqueeze(-2), weight * hot, 1)
        start = unit * weight / 2 * there * (hot - 1 / there.sum(-2, keepdim=True))
        slack = torch.where(there > 0, box - start, 1)
        point = (torch.stack([slack, unit / (unit + slack)]), torch.zeros_like(weight))
        point = self._optimum(kernel.detach(), (hot, box, there), unit, *point)
        systems = _systems(kernel, there, point[0])
        rest = _rest(kernel, hot, box, *point)
        step = _newton(systems, rest, point[0], unit * _CENTRE / 10)[0]
        dual = there * (box - point[0][0] - step[0]) / scale
        state = {"weight": widened(x.mT @ dual.mT, columns), "counts": counts}
        return tree.map(lambda t: t.to(dtype), state)

    def _optimum(
        self,
        kernel: Tensor,
        problem: tuple[Tensor, ...],
        unit: Tensor,
        values: Tensor,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """From any such values on: the slacks of the bounds of A and their multipliers,
        `[2, ..., N, S]`, and the multipliers of its sums, `[..., 1, S]`. unit: of the size of A."""
        hot, box, there = problem
        for _ in range(self.steps):
            gap = values.prod(0).sum((-2, -1), keepdim=True)
            mean = gap / hot.shape[-2:].numel()
            systems = _systems(kernel, there, values)
            rest = _rest(kernel, hot, box, values, shift)
            steps, _ = _newton(systems, rest, values, 0.0)
            left = (values + _length(values, steps) * steps).prod(0).sum((-2, -1), keepdim=True)
            centre = torch.maximum((left / gap) ** 3 * mean, unit * _CENTRE)
            steps, d_shift = _newton(systems, rest, values, centre - steps.prod(0))
            # The nearer the end, the nearer to the bounds.
            length = (1 - (mean / unit).clamp(1e-6, 5e-3)) * _length(values, steps).clamp(max=1)
            values, shift = values + length * steps, shift + length * d_shift
        return values, shift

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(hyper["scale"] * features @ state["weight"], state["counts"])


def _length(values: Tensor, steps: Tensor) -> Tensor:
    """How much of a step leaves every value above 0, 1.01 at most: `[..., 1, 1]`."""
    return 1 / (-steps / values).amax(0).amax((-2, -1), keepdim=True).clamp(min=1 / 1.01)


def _systems(kernel: Tensor, there: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return class_systems(kernel, there * (values[0] / values[1]).sqrt())


def _rest(kernel: Tensor, hot: Tensor, box: Tensor, values: Tensor, shift: Tensor) -> Tensor:
    """Minus the derivative of the Lagrangian without the multipliers of the bounds,
    `[..., N, S]`."""
    return hot - (box - values[0]) @ kernel - shift


def _newton(
    systems: tuple[Tensor, Tensor], rest: Tensor, values: Tensor, target: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The step from `values` to where the slacks times their multipliers are `target`, and that of
    the multipliers of the sums, which stay 0."""
    (each, together), (slack, dual) = systems, values
    wanted = target / slack
    solved = (each @ (rest - wanted).unsqueeze(-1)).squeeze(-1)
    d_shift = torch.cholesky_solve(solved.sum(-2).unsqueeze(-1), together)
    d_a = solved - (each @ d_shift.unsqueeze(-3)).squeeze(-1)
    return torch.stack([-d_a, wanted - dual + dual / slack * d_a]), d_shift.mT
