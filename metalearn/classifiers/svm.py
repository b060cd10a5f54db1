"""The multi-class support vector machine of Crammer and Singer, at its optimum.

    min over W  |W|^2 / 2 + C * sum over i of  max over n of (w_n f_i - w_{y_i} f_i + [n != y_i])

by its dual, over A `[N, S]` with W = A X (eq. 8):

    min  sum over n of  a_n K a_n / 2  -  sum over i of a_{y_i, i},   K = X X^T
    a_{n, i} <= C [n = y_i],   sum over n of a_{n, i} = 0

found for all tasks of a batch at once by an interior point method (`crammer_singer.py`). The answer
is one more Newton step at the optimum, whose derivative in K is that of the optimum itself.
logits = scale * f(x) W^T.

Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization, 2019
(MetaOptNet), section 3.2. Their code adds 1 to the diagonal of K; this does not.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from metalearn import tree
from metalearn.classifiers.classes import masked, membership, widened
from metalearn.classifiers.crammer_singer import Point, Program, better, last, of_tasks
from metalearn.classifiers.protocol import positive
from metalearn.errors import UsageError
from metalearn.types import Batch, Params

_RIDGE = 1e-9  # of the mean of K's diagonal, added to it: where K is singular, less is noise

_MOST = 60  # steps, of which most tasks need 5


@dataclass(frozen=True)
class SVM:
    """strength: C, above 0; 0.1 in the paper. scale: where the learned scale starts.

    steps: of the interior point method where it is differentiated; many tasks at once take as many
    as each needs. Of fewer features than examples, with a C of 10 or features of length 30, 11 end
    0.1 above the optimum where 40 reach it. ways: N where it is known, the most of all tasks; None
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
        kernel = kernel / scale + _RIDGE * torch.eye(size).to(kernel)
        strength = self.strength * scale
        unit = strength.clamp(max=1)
        box = strength * torch.where(real.unsqueeze(-2), weight * hot, 1)
        start = unit * weight / 2 * there * (hot - 1 / there.sum(-2, keepdim=True))
        slack = torch.where(there > 0, box - start, 1)
        # Not quite in the middle: 0.3 takes a step less than 1.
        point = Point(torch.stack([slack, 0.3 * unit / (unit + slack)]), torch.zeros_like(weight))
        program = Program(kernel, hot, box, there, unit)
        if x.ndim > 2 and not torch.is_grad_enabled():
            dual = of_tasks(program, point, max(_MOST, self.steps))
        else:
            for _ in range(self.steps):
                point = better(program._replace(kernel=kernel.detach()), point)
            dual = last(program, point)
        state = {"weight": widened(x.mT @ (dual / scale).mT, columns), "counts": counts}
        return tree.map(lambda t: t.to(dtype), state)

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(hyper["scale"] * features @ state["weight"], state["counts"])
