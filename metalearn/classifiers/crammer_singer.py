"""The quadratic program of `svm.SVM`, for one task or, with a leading T, for many at once.

Each step of Mehrotra's predictor and corrector solves N systems of size S. Where nothing is
differentiated and there are many tasks, one that says twice which bounds are met is taken at its
word: with those bounds as equations one more system is the whole answer, if it keeps the others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CENTRE = 1e-11  # slack times multiplier at the end, of the size of A
_KEPT = 1e-10  # by how much less than 0 rounding leaves a slack or a multiplier
_SHUT = 1e200  # of the diagonal of a system, for what stays as it is


class Program(NamedTuple):
    """min over A of  sum over n of a_n K a_n / 2 - sum of hot * A;  A <= box, columns sum to 0.

    kernel: K `[..., S, S]`, its diagonal near 1. hot, box: `[..., N, S]`. there: `[..., N, 1]`, 0
    for a class whose row of A is 0. unit: of the size of A, `[..., 1, 1]`.
    """

    kernel: Tensor
    hot: Tensor
    box: Tensor
    there: Tensor
    unit: Tensor


class Point(NamedTuple):
    """values: the slacks of the bounds and their multipliers, `[2, ..., N, S]`. shift: the
    multipliers of the sums, `[..., 1, S]`."""

    values: Tensor
    shift: Tensor


def at(program: Program, rows: Tensor) -> Program:
    """That of some of T tasks."""
    return Program(*(t[rows] for t in program))


def better(program: Program, point: Point) -> Point:
    """One step of the interior point method, from any point on."""
    unit, (values, shift) = program.unit, point
    systems, rest = _systems(program, values[1] / values[0]), _rest(program, point)
    steps, _ = _newton(systems, rest, values, 0.0)
    gap = values.prod(0).sum((-2, -1), keepdim=True)
    left = (values + _length(values, steps) * steps).prod(0).sum((-2, -1), keepdim=True) / gap
    mean = gap / values.shape[-2:].numel()
    centre = torch.maximum(left**3 * mean, unit * CENTRE)
    steps, d_shift = _newton(systems, rest, values, centre - steps.prod(0))
    # The nearer the end, the nearer to the bounds.
    length = (1 - (mean / unit).clamp(1e-6, 5e-3)) * _length(values, steps).clamp(max=1)
    return Point(values + length * steps, shift + length * d_shift)


def last(program: Program, point: Point) -> Tensor:
    """A after one more Newton step, whose derivative in K at the optimum is that of the optimum."""
    systems, rest = _systems(program, point.values[1] / point.values[0]), _rest(program, point)
    step = _newton(systems, rest, point.values, program.unit * CENTRE / 10)[0]
    return program.there * (program.box - point.values[0] - step[0])


def of_tasks(program: Program, point: Point, steps: int) -> Tensor:
    """A of T tasks, without a derivative, after `steps` steps at most."""
    answer, rows = torch.zeros_like(program.hot), torch.arange(len(program.hot)).to(program.hot.device)
    before = torch.zeros_like(program.hot)
    for _ in range(steps):
        point = better(program, point)
        free = (point.values[0] > program.unit * point.values[1]) * program.there
        sure = (free == before).all(-1).all(-1).nonzero().squeeze(1)
        before = free
        if not len(sure):
            continue
        found, right = _with_bounds(
            at(program, sure), Point(point.values[:, sure], point.shift[sure]), free[sure]
        )
        answer[rows[sure[right]]] = found[right]
        others = torch.ones_like(rows, dtype=torch.bool)
        others[sure[right]] = False
        if not bool(others.any()):
            return answer
        rows, before, program = rows[others], before[others], at(program, others)
        point = Point(point.values[:, others], point.shift[others])
    answer[rows] = last(program, point)
    return answer


def _with_bounds(program: Program, point: Point, free: Tensor) -> tuple[Tensor, Tensor]:
    """A whose bounds are met but for those that are `free` (1, else 0), `[T, N, S]`, and whether it
    is the optimum, `[T]`."""
    kernel, hot, box, there, unit = program
    a = box - point.values[0] * free
    a = a * there
    each, together = _systems(program, _SHUT * (1 - free))
    rest = hot - a @ kernel - point.shift
    solved = (each @ rest.unsqueeze(-1)).squeeze(-1)
    d_shift = torch.cholesky_solve((solved.sum(-2) + a.sum(-2)).unsqueeze(-1), together)
    a = a + free * (solved - (each @ d_shift.unsqueeze(-3)).squeeze(-1))
    dual = (hot - a @ kernel - point.shift - d_shift.mT) * there
    kept = (box - a >= -_KEPT * unit) & (dual >= -_KEPT) & (dual * free <= 1e3 * _KEPT)
    return a, (kept | (there == 0)).all(-1).all(-1)


def _length(values: Tensor, steps: Tensor) -> Tensor:
    """How much of a step leaves every value above 0, 1.01 at most: `[..., 1, 1]`."""
    return 1 / (-steps / values).amax(0).amax((-2, -1), keepdim=True).clamp(min=1 / 1.01)


def _systems(program: Program, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(K + diagonal of ratio_n)^-1 `[..., N, S, S]`, 0 for a class that is not there, and the
    Cholesky factor of their sum."""
    kernel = program.kernel
    eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    ratio = ratio + _SHUT * (1 - program.there)
    lower = torch.linalg.cholesky_ex(kernel.unsqueeze(-3) + ratio.unsqueeze(-1) * eye)[0]
    half = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    each = half.mT @ half
    return each, torch.linalg.cholesky_ex(each.sum(-3))[0]


def _rest(program: Program, point: Point) -> Tensor:
    """Minus the derivative of the Lagrangian without the multipliers of the bounds,
    `[..., N, S]`."""
    return program.hot - (program.box - point.values[0]) @ program.kernel - point.shift


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
