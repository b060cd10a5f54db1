"""Multinomial logistic regression with a penalty on its weights, at its minimum.

    min over W, b of  |W|^2 / 2 + C * sum over the support set of the cross-entropy of f(x) W + b

found by Newton's method in the span of the support features, where W = X^T A: with K = X X^T the
logits are F = K A + b, and a step solves

    A = C (Y - P) - C H (K A + b - F),   the columns of A sum to 0

with P the probabilities at F and H their derivative. H is block diagonal over the examples, so
that the solution costs N systems of size S (Rasmussen and Williams: Gaussian Processes for Machine
Learning, 2006, algorithm 3.3, to which the b without a penalty is added here).

On features of unit length the classifier of Tian, Wang, Krishnan, Tenenbaum, Isola: Rethinking
Few-shot Image Classification: A Good Embedding Is All You Need?, 2020 ("RFS"), section 3.3.
Meta-trained, the LR-D2 of Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable
Closed-form Solvers, 2019.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn import tree
from metalearn.classifiers import logistic_primal
from metalearn.classifiers.classes import (
    class_systems,
    cross_entropies,
    masked,
    membership,
    widened,
)
from metalearn.classifiers.logistic_primal import Problem
from metalearn.classifiers.protocol import log_of, positive
from metalearn.errors import check_whole
from metalearn.types import Batch, Params

_LENGTHS = tuple(0.5**k for k in range(8))  # of a step, of which the best is taken


@dataclass(frozen=True)
class LogisticRegression:
    """The minimum, and its exact derivative: that of one more Newton step, since the step's own
    derivative in where it starts is 0 there.

    strength: C, above 0. learn_strength: meta-learn it, as `hyper["log_strength"]`.
    steps: of Newton's method, each as long as lowers the loss the most.
    ways: N where it is known, the most of all tasks; None takes S for it, which costs more.
    """

    strength: float = 1.0
    learn_strength: bool = False
    steps: int = 12
    ways: int | None = None
    transductive: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        positive("strength", self.strength)
        check_whole("steps", self.steps)

    def hyper(self, features: int | None = None) -> Params:
        """log C, where it is learned."""
        return {"log_strength": log_of(self.strength)} if self.learn_strength else {}

    def fit(self, hyper: Params, support: Batch, unlabelled: Batch | None = None) -> Params:
        """`weight` `[D, S]` and `bias` `[S]`, a column a class and the sum of b 0, and `counts`
        `[S]`, the support examples of each class; the columns from N on are 0."""
        # In float64: a step is a small difference of terms as large as C.
        x, size, dtype = support.x.double(), len(support.x), support.x.dtype
        ways = min(self.ways or size, size)
        counts = membership(support, x.dtype).sum(1)
        hot = membership(support._replace(weight=None), x.dtype)[:ways].T
        log = hyper.get("log_strength")
        strength = x.new_tensor(self.strength) if log is None else log.double().exp()
        weight = torch.ones_like(x[:, 0]) if support.weight is None else support.weight.double()
        if logistic_primal.cheaper(size, x.shape[1], ways):
            whole = Problem(logistic_primal.with_one(x), hot, weight, strength, counts[:ways])
            # The last step, in double precision, makes up for the others.
            fixed = Problem(*(part.detach().float() for part in whole))
            near = logistic_primal.minimum(fixed, self.steps, fixed.x.new_tensor(_LENGTHS)).to(x)
            there = (counts[:ways] > 0).to(x)
            near = torch.cat([near[:-1], near[-1:] - there * near[-1:].sum() / there.sum()])
            for _ in range(2):
                near = logistic_primal.newton(near, whole)
            state = {"weight": widened(near[:-1], size), "bias": widened(near[-1], size)}
            return tree.map(lambda t: t.to(dtype), {**state, "counts": counts})
        problem = (x @ x.T, hot, weight, strength, counts[:ways])
        dual, bias = _newton(self._minimum(*(part.detach() for part in problem)), *problem)
        state = {"weight": widened(x.T @ dual, size), "bias": widened(bias, size)}
        return tree.map(lambda t: t.to(dtype), {**state, "counts": counts})

    def _minimum(
        self, kernel: Tensor, hot: Tensor, weight: Tensor, strength: Tensor, counts: Tensor
    ) -> Tensor:
        """The logits F `[S, N]` there."""
        dual, logits = torch.zeros_like(hot), torch.zeros_like(hot)
        lengths = kernel.new_tensor(_LENGTHS).view(-1, 1, 1)
        for _ in range(self.steps):
            new, bias = _newton(logits, kernel, hot, weight, strength, counts)
            duals = dual + lengths * (new - dual)
            every = logits + lengths * (kernel @ new + bias - logits)
            losses = strength * (weight * cross_entropies(masked(every, counts), hot)).sum(1)
            best = (losses + (duals * (kernel @ duals)).sum((1, 2)) / 2).argmin(0, keepdim=True)
            dual, logits = (t.index_select(0, best).squeeze(0) for t in (duals, every))
        return logits

    def logits(self, hyper: Params, state: Params, features: Tensor) -> Tensor:
        """`[Q, S]` of features `[Q, D]`."""
        return masked(features @ state["weight"] + state["bias"], state["counts"])


def _newton(
    logits: Tensor, kernel: Tensor, hot: Tensor, weight: Tensor, strength: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """A `[S, N]` and b `[N]` of the step from `logits` `[S, N]`."""
    p = masked(logits, counts).softmax(1)
    # E_n = (K + D_n^-1)^-1 with D_n = C diag(p_n), by a root of D_n that may be 0.
    roots = strength.sqrt() * (weight.unsqueeze(1) * p).sqrt().T
    each, together = class_systems(kernel, roots, weight == 0)

    def solved(v: Tensor) -> Tensor:
        """(K + (C H)^-1)^-1 v of `[S, N]`."""
        first = each @ v.T.unsqueeze(2)
        correction = torch.cholesky_solve(first.sum(0), together)
        return (first - each @ correction).squeeze(2).T

    rest = strength * weight.unsqueeze(1) * (hot - p)
    whole = solved(logits - kernel @ rest) + rest
    # What b does to the sums of the columns of A. It is not moved by what all classes share, and
    # b is 0 for a class that is not there.
    sums = each.sum(1).T
    moved = torch.linalg.solve_triangular(together, sums, upper=False)
    there = (counts > 0).to(kernel.dtype)
    shared = (strength * weight.sum()) * torch.outer(there, there) + torch.diag(1 - there)
    system = torch.diag(sums.sum(0)) - moved.T @ moved + shared
    bias = torch.cholesky_solve(whole.sum(0).unsqueeze(1), torch.linalg.cholesky_ex(system)[0])
    bias = bias.squeeze(1)
    return whole - solved(bias.expand_as(logits)), bias
