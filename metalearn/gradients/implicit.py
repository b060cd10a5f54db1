"""The meta-gradient of an inner loop that has arrived, by the implicit function theorem.

With theta* the minimum of the proximal inner loss G(theta, meta),

    grad_theta G(theta*, meta) = 0,   H = d^2 G / d theta^2 (theta*)
    H v = d L_query / d theta (theta*)
    d L_query(theta*) / d meta = dL_query/dmeta - d <grad_theta G(theta*, meta), v> / d meta

How the inner loop got there does not matter: neither its steps nor its rule are differentiated,
and memory is that of one Hessian-vector product. What it costs is that theta_K is not theta*:
the error is of the size of |grad_theta G(theta_K)|, and of the residual that the solver leaves.
Rates that a rule learns move the path and not the minimum, so their gradient is exactly zero. A
rule with weight decay ends elsewhere, and is refused.

Rajeswaran, Finn, Kakade, Levine: Meta-Learning with Implicit Gradients, 2019, eq. 6 and
algorithm 2; the Neumann series is that of Lorraine, Vicol, Duvenaud, 2020, algorithm 3.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from metalearn import tree
from metalearn.engine import plain_loop
from metalearn.engine.task import Run, Task
from metalearn.errors import UsageError, check_whole
from metalearn.functional.autodiff import derivative_along, gradient_at
from metalearn.gradients.steps import adapted, query_loss
from metalearn.inner.loop import dropping, inner_gradient
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.types import GradientAndMetrics, Kind, Meta, MetaGradients, Metrics, Params

Solver = Literal["cg", "neumann"]


class Search(NamedTuple):
    """Where the solver of H v = b stands.

    found: v so far. residual: b - H v. direction: of the next step.
    enough: scalar, the squared residual at which it stops. done: bool scalar, whether it has.
    """

    found: Params
    residual: Params
    direction: Params
    enough: Tensor
    done: Tensor


def dot(a: Params, b: Params) -> Tensor:
    """<a, b>."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def is_done(squared: Tensor, enough: Tensor) -> Tensor:
    """Whether a squared residual is small enough. Of an overflowed one it is not: the search
    goes on, so that what is not finite reaches the meta-gradient, where it is seen."""
    return (squared <= enough) & squared.isfinite()


def start(
    algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task, tolerance: float
) -> tuple[tuple[MetaGradients, Search], Metrics]:
    """The gradient of the outer loss at `fast`: for init and hyper with `fast` held, and for
    `fast` as the b of a search that starts at v = 0."""

    def loss(learned: MetaGradients, fast: Params) -> tuple[Tensor, Metrics]:
        full = Meta(**learned, buffers=meta["buffers"])
        return query_loss(algo, full, fast, task, algo.steps)

    learned = MetaGradients(init=meta["init"], hyper=meta["hyper"])
    (direct, b), metrics = gradient_at(loss, learned, fast, has_aux=True)
    squared = dot(b, b)
    enough = squared * tolerance**2
    search = Search(tree.zeros_like(b), b, b, enough, is_done(squared, enough))
    return (direct, search), metrics


def inner_gradient_at_end(algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task) -> Params:
    """The gradient of the inner loss on the whole support set, whatever minibatches the rule
    takes, and with one dropout mask, so that H is one matrix."""
    with dropping(task.seed, algo.steps):
        return inner_gradient(algo, meta, fast, task.given, algo.steps)


def within_reach(rate: float, bend: Tensor, squared: Tensor) -> Tensor:
    """`rate`, or the best step along the residual r where that step would lengthen it.

        |r - rate H r|^2 > |r|^2   where   rate > 2 <r, H r> / |H r|^2,   smallest at half of that

    bend: <r, H r>. squared: |H r|^2. Where all eigenvalues of H lie between 0 and 2 / rate it is
    `rate` in every step, and the series is the plain one.
    """
    best = bend / squared  # of 0 / 0, and of what overflowed, the plain step
    return torch.where((rate > 2 * best) & squared.isfinite(), best, rate)


def search_step(
    algo: MetaAlgorithm,
    meta: Meta,
    fast: Params,
    task: Task,
    search: Search,
    rate: float | None,
    forward_over_reverse: bool = False,
) -> Search:
    """One product with H and one step along `direction`; `search` itself where that is done.

    rate: of the Neumann series, v <- v + rate * (b - H v), or None for conjugate gradients. Where
    that step would make the residual larger, which it does in the end for an H that has an
    eigenvalue of 2 / rate or more, the step is the one along the residual that makes it smallest.
    """

    def gradient(fast: Params) -> Params:
        return inner_gradient_at_end(algo, meta, fast, task)

    v, residual, direction, enough, done = search
    if forward_over_reverse:
        curved = derivative_along(gradient, (fast,), (direction,))
    else:
        curved = vjp(gradient, fast)[1](direction, retain_graph=False)[0]
    before = dot(residual, residual)
    if rate is None:
        length = before / dot(direction, curved)
    else:
        length = within_reach(rate, dot(residual, curved), dot(curved, curved))
    v = tree.map(lambda v, p: v + length * p, v, direction)
    residual = tree.map(lambda r, h: r - length * h, residual, curved)
    after = dot(residual, residual)
    turn = after / before if rate is None else 0.0
    direction = tree.map(lambda r, p: r + turn * p, residual, direction)

    def kept(new: Params, old: Params) -> Params:
        return tree.map(lambda a, b: torch.where(done, b, a), new, old)

    return Search(
        kept(v, search.found),
        kept(residual, search.residual),
        kept(direction, search.direction),
        enough,
        done | is_done(after, enough),
    )


def through_minimum(
    algo: MetaAlgorithm, meta: Meta, fast: Params, task: Task, v: Params, direct: MetaGradients
) -> MetaGradients:
    """`direct` - d <grad of the inner loss, v> / d (init, hyper)."""

    def gradient(learned: MetaGradients) -> Params:
        full = Meta(**learned, buffers=meta["buffers"])
        return inner_gradient_at_end(algo, full, fast, task)

    learned = MetaGradients(init=meta["init"], hyper=meta["hyper"])
    moved = vjp(gradient, learned)[1](v, retain_graph=False)[0]
    return MetaGradients(
        init=tree.map(torch.sub, direct["init"], moved["init"]),
        hyper=tree.map(torch.sub, direct["hyper"], moved["hyper"]),
    )


def all_done(search: Search) -> bool:
    """Whether every task of this part is done. A CUDA graph cannot ask, and takes all steps."""
    if search.done.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(search.done.all())


@dataclass(frozen=True)
class Implicit:
    """The implicit gradient, for algorithms with a proximal inner loss (kind "implicit").

    solver: "cg", conjugate gradients, which needs H positive definite: a proximal strength above
        the inner loss's most negative curvature; or "neumann", the series of step `rate`, whose
        steps are shortened where H is above 2 / rate.
    iterations: at most, a Hessian-vector product each. tolerance: the residual |H v - b| / |b|
        at which a task stops before that.

    Raises UsageError for an unknown solver, a negative tolerance, or a count or rate not above 0.
    """

    solver: Solver = "cg"
    iterations: int = 5
    tolerance: float = 1e-4
    rate: float = 0.1
    kind: ClassVar[Kind] = "implicit"
    __call__ = plain_loop

    def __post_init__(self) -> None:
        if self.solver not in ("cg", "neumann"):
            raise UsageError(f"gradient.solver={self.solver!r} is not known; use cg or neumann")
        check_whole("gradient.iterations", self.iterations, 1)
        if not self.tolerance >= 0:
            raise UsageError(f"gradient.tolerance={self.tolerance} must be 0 or more")
        if not self.rate > 0:
            raise UsageError(f"gradient.rate={self.rate} must be above 0")

    def task(self, algo: MetaAlgorithm, meta: Meta, task: Task, run: Run) -> GradientAndMetrics:
        """One task: the implicit gradient where its inner loop ends."""
        if not algo.steps:
            raise UsageError("gradient Implicit needs algorithm.steps of 1 or more")
        if algo.step_weights(meta) is not None:
            raise UsageError(
                "gradient Implicit knows the end of the inner loop alone, and this algorithm "
                "weighs the query loss of every step; use gradient=adjoint"
            )
        fast, _ = adapted(algo, meta, task, run)
        (direct, search), metrics = run(start, algo, meta, fast, task, tolerance=self.tolerance)
        rate = self.rate if self.solver == "neumann" else None
        for _ in range(self.iterations):
            if run.fused and all_done(search):
                break
            search = run(
                search_step, algo, meta, fast, task, search, rate=rate,
                forward_over_reverse=run.forward_over_reverse,
            )  # fmt: skip
        return run(through_minimum, algo, meta, fast, task, search.found, direct), metrics
