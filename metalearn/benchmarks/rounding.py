"""How far the meta-gradient of each precision is from float64."""

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from metalearn.benchmarks.cells import Cell
from metalearn.benchmarks.distance import distance
from metalearn.benchmarks.frameworks.ours import engine_and_strategy, ours
from metalearn.benchmarks.frameworks.plain import reference
from metalearn.engine.in_float64 import OFF
from metalearn.errors import UsageError

STRATEGIES = (
    "unroll:loop:fp32",
    "unroll:loop:bf16",
    "unroll:loop:bf16-all",
    "unroll:loop:fp16",
    "first_order:loop:fp32",
)
"""Every precision by the same plain batching, and the first-order gradient for scale."""


def measure(cell: Cell, names: Sequence[str], device: str = "cpu") -> list[dict[str, Any]]:
    """Relative error and cosine of each strategy against a float64 loop over the same tasks.

    A strategy that refuses its precision has null for both and its reason.
    """
    exact = reference(cell, "cpu")
    found = []
    for name in names:
        error, cosine, reason = None, None, ""
        try:
            gradient = ours(cell, *engine_and_strategy(name), device)()[0]["init"]
            error, cosine = distance(gradient, exact)
        except (UsageError, RuntimeError) as refusal:
            reason = " ".join(str(refusal).split())[:200]
        entry = {"model": cell.model, "steps": cell.steps, "strategy": name}
        found.append({**entry, "error": error, "cosine": cosine, "reason": reason})
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


def by_steps(
    models: Sequence[str] = ("conv4-28", "smooth-28"),
    steps: Sequence[int] = (1, 5, 20),
    names: Sequence[str] = STRATEGIES,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """The table of errors, one task a cell."""
    cells = (Cell(model, k, 1) for model in models for k in steps)
    return [entry for cell in cells for entry in measure(cell, names, device)]


def off_tasks(
    models: Sequence[str] = ("conv4-28", "smooth-28"),
    steps: Sequence[int] = (1, 5, 20),
    precisions: Sequence[str] = ("fp32", "bf16"),
    tasks: int = 32,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """How many of so many tasks have a meta-gradient that is off from float64 by more than `OFF`,
    by plain unrolling, one task at a time; the median error and the largest."""
    found = []
    for model, k in itertools.product(models, steps):
        cells = [Cell(model, k, 1, draw=draw) for draw in range(tasks)]
        exact = [reference(cell, "cpu") for cell in cells]
        for precision in precisions:
            how = engine_and_strategy(f"unroll:loop:{precision}")
            got = [ours(cell, *how, device)()[0]["init"] for cell in cells]
            errors = [distance(g, w)[0] for g, w in zip(got, exact, strict=True)]
            entry = {"model": model, "steps": k, "precision": precision, "tasks": tasks}
            off = sum(not error <= OFF for error in errors)
            entry |= {"off": off, "median": statistics.median(errors), "largest": max(errors)}
            found.append(entry)
    return found
