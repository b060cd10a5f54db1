"""The quadratic program of `svm.SVM`, for one task or, with a leading T, for many at once.

Each step of Mehrotra's predictor and corrector solves N systems of size S. `of_tasks` takes a task
at its word that says twice which bounds are met: with those as equations one more solution is the
answer where it keeps the others, and where it does not it says which to try next. So most tasks are
done, exactly, in half the steps, and the rest go on without them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CENTRE = 1e-11  # slack times multiplier at the end, of the size of A
_KEPT = 1e-10  # by how much less than 0 rounding leaves a slack or a multiplier
_TRIES = 4  # at which bounds are met, before the next step
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


def _at(program: Program, rows: Tensor) -> Program:
    return Program(*(t[rows] for t in program))


def better(program: Program, point: Point) -> Point:
    """One step of the interior point method, from any point on."""
    unit, (values, shift) = program.unit, point
    systems, rest = _systems(program, values[1] / values[0]), _rest(program, point)
    steps, _ = _newton(systems, rest, values)
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
    answer = torch.zeros_like(program.hot)
    rows, before = torch.arange(len(answer), device=answer.device), answer
    for _ in range(steps):
        point = better(program, point)
        free = (point.values[0] > program.unit * point.values[1]) * program.there
        tried = (free == before).flatten(1).all(1).nonzero().squeeze(1)
        left, before = torch.ones_like(rows, dtype=torch.bool), free
        for _ in range(_TRIES):
            if len(tried) <= left.sum() / 4:  # too few to be worth it before the others' next step
                break
            found, right, free_there = _with_bounds(
                _at(program, tried), point.values[0, tried], point.shift[tried], free[tried]
            )
            answer[rows[tried[right]]], left[tried[right]] = found[right], False
            free = free.index_copy(0, tried, free_there)
            tried = tried[~right]
        if not left.all():
            rows, before, program = rows[left], before[left], _at(program, left)
            point = Point(point.values[:, left], point.shift[left])
        if not len(rows):
            return answer
    answer[rows] = last(program, point)
    return answer


def _with_bounds(
    program: Program, slack: Tensor, shift: Tensor, free: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A whose bounds are met but for those that are `free` (1, else 0), `[T, N, S]`, whether it is
    the optimum, `[T]`, and what is free by what it says."""
    kernel, hot, box, there, unit = program
    a = (box - slack * free) * there
    each, together = _systems(program, _SHUT * (1 - free))
    rest = hot - a @ kernel - shift
    solved = _times(each, rest)
    d_shift = torch.cholesky_solve((solved.sum(-2) + a.sum(-2)).unsqueeze(-1), together)
    a = a + free * (solved - (each.flatten(-3, -2) @ d_shift).view(solved.shape))
    dual = hot - a @ kernel - shift - d_shift.mT
    kept = (box - a >= -_KEPT * unit) & (dual >= -_KEPT) & (dual * free <= 1e3 * _KEPT)
    more = ((box - a) > unit * dual) * there
    return a, (kept | (there == 0)).flatten(1).all(1), more


def _length(values: Tensor, steps: Tensor) -> Tensor:
    """How much of a step leaves every value above 0, 1.01 at most: `[..., 1, 1]`."""
    return -1 / (steps / values).amin((0, -2, -1), keepdim=True)[0].clamp(max=-1 / 1.01)


def _systems(program: Program, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(K + diagonal of ratio_n)^-1 `[..., N, S, S]`, 0 for a class that is not there, and the
    Cholesky factor of their sum."""
    kernel = program.kernel
    eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    ratio = ratio + _SHUT * (1 - program.there)
    lower = torch.linalg.cholesky_ex(kernel.unsqueeze(-3) + torch.diag_embed(ratio))[0]
    half = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    each = half.mT @ half
    return each, torch.linalg.cholesky_ex(each.sum(-3))[0]


def _rest(program: Program, point: Point) -> Tensor:
    """Minus the derivative of the Lagrangian without the multipliers of the bounds,
    `[..., N, S]`."""
    return program.hot - (program.box - point.values[0]) @ program.kernel - point.shift


def _newton(
    systems: tuple[Tensor, Tensor], rest: Tensor, values: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The step from `values` to where the slacks times their multipliers are `target`, None for 0,
    and that of the multipliers of the sums, which stay 0."""
    (each, together), (slack, dual) = systems, values
    wanted = None if target is None else target / slack
    solved = _times(each, rest if wanted is None else rest - wanted)
    d_shift = torch.cholesky_solve(solved.sum(-2).unsqueeze(-1), together)
    # All of the classes' systems at once: a row of E_n a row of the product.
    d_a = solved - (each.flatten(-3, -2) @ d_shift).view(solved.shape)
    d_dual = dual / slack * d_a - dual
    d_dual = d_dual if wanted is None else d_dual + wanted
    return torch.stack([-d_a, d_dual]), d_shift.mT


def _times(each: Tensor, values: Tensor) -> Tensor:
    return (each @ values.unsqueeze(-1)).squeeze(-1)
