"""The speed of an evaluation: adapt to every task, and measure its queries once, after K steps.

Beside learn2learn's MAML of first order, and a plain loop of autograd, as users of torch write one.
All run the same tasks from the same weights, and before anything is timed their accuracies are the
same, but for tasks in which rounding moves a query across a kink.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from metalearn.algorithms import MAML
from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.models import episodes, module, user_loss
from metalearn.benchmarks.turns import in_turns
from metalearn.engine import Engine
from metalearn.evaluation.protocol import evaluate
from metalearn.gradients.peers.base import imported
from metalearn.inner import sgd

Accuracies = Callable[[], np.ndarray]
"""Evaluates all tasks once: `[T]`, fractions."""

MANY = 10**6  # episodes to come, for which compiling is worth it
_SAME = 0.01  # how far two means of accuracies may be apart


def contestants(cell: Cell) -> dict[str, Accuracies]:
    """By name, what evaluates the T tasks of `cell` after its K steps."""
    net, loss, tasks = module(cell.model), user_loss(cell.model), episodes(cell)
    support, query, _ = tasks
    algo = MAML(net, cell.steps, sgd(cell.rate))
    meta = algo.init()

    def ours(engine: Engine) -> Accuracies:
        def run() -> np.ndarray:
            report = evaluate(algo, meta, tasks, engine=engine, at=(cell.steps,), coming=MANY)
            return report.accuracies

        return run

    def each(adapted: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]) -> Accuracies:
        def run() -> np.ndarray:
            found = []
            for x, y, query_x, query_y in zip(support.x, support.y, query.x, query.y, strict=True):
                predict = adapted(x, y)
                with torch.no_grad():
                    found.append(float((predict(query_x).argmax(-1) == query_y).float().mean()))
            return np.array(found)

        return run

    maml = imported("learn2learn").algorithms.MAML(
        copy.deepcopy(net), lr=cell.rate, first_order=True
    )

    def theirs(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        learner = maml.clone()
        for _ in range(cell.steps):
            learner.adapt(loss(learner(x), y))
        return learner

    plain = copy.deepcopy(net)

    def by_hand(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        weights = {n: p.detach().requires_grad_() for n, p in plain.named_parameters()}
        for _ in range(cell.steps):
            of = loss(functional_call(plain, weights, (x,)), y)
            grads = torch.autograd.grad(of, list(weights.values()))
            moved = zip(weights.items(), grads, strict=True)
            weights = {n: (w - cell.rate * g).detach().requires_grad_() for (n, w), g in moved}
        return lambda query_x: functional_call(plain, weights, (query_x,))

    return {
        "ours": ours(Engine()),
        "ours, not compiled": ours(Engine("loop")),
        "learn2learn": each(theirs),
        "a plain loop": each(by_hand),
    }


def measure(cell: Cell, repeats: int = 5) -> list[Mapping[str, Any]]:
    """Seconds a task of every contestant, in turns; a dict each.

    Raises RuntimeError where one reaches other accuracies than the plain loop.
    """
    made = contestants(cell)
    reached = {name: run() for name, run in made.items()}  # compiles, warms up
    for name, found in reached.items():
        if abs(found.mean() - reached["a plain loop"].mean()) > _SAME:
            raise RuntimeError(f"{cell.name}: {name} reaches other accuracies than a plain loop")
    told = {name: {"accuracy": float(found.mean())} for name, found in reached.items()}
    return in_turns(cell.name, made, cell.tasks, repeats, told)
