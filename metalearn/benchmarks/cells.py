"""What is measured: a network, K inner steps, T tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from metalearn.errors import UsageError, nearest

MODELS = ("mlp", "conv4-28", "conv4-32", "conv4-84", "resnet12-84", "vit-32")
STEPS = (1, 5, 20, 50)
TASKS = (1, 4, 16, 32)
SMALL = ("tiny", "smooth-28")
"""Networks outside the grid: for the tests, and for the table of errors."""


@dataclass(frozen=True)
class Cell:
    """One meta-step to measure: 5-way 1-shot with 15 queries a class; `mlp` regresses on a
    sinusoid with 10 support points and 10 queries. draw: which tasks; tells no cells apart."""

    model: str
    steps: int
    tasks: int
    ways: int = 5
    shots: int = 1
    queries: int = 15
    draw: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        return f"{self.model} K={self.steps} T={self.tasks}"

    @property
    def rate(self) -> float:
        """The inner rate: falls with K, so that a long float32 inner loop stays comparable with
        a float64 one. The time does not depend on it."""
        return min(0.1, 0.5 / self.steps)


FULL = tuple(Cell(model, steps, tasks) for model in MODELS for steps in STEPS for tasks in TASKS)
QUICK = (Cell("mlp", 5, 4), Cell("conv4-28", 1, 4), Cell("conv4-32", 1, 4))


def parse(text: str) -> tuple[Cell, ...]:
    """The cells that `cells=` names: "quick", "full", or parts joined by "/".

    A part is models (`conv4-28,mlp`), steps (`K=1,5`) or tasks (`T=4`); what is left out is
    the grid's. Numbers need not be the grid's own. Raises UsageError.
    """
    if text in ("quick", "full"):
        return QUICK if text == "quick" else FULL
    models: Sequence[str] = MODELS
    steps: Sequence[int] = STEPS
    tasks: Sequence[int] = TASKS
    for part in text.split("/"):
        name, given, values = part.partition("=")
        if given and name == "K":
            steps = _numbers(part, values)
        elif given and name == "T":
            tasks = _numbers(part, values)
        else:
            models = part.split(",")
            if unknown := [model for model in models if model not in (*MODELS, *SMALL)]:
                near = nearest(unknown[0], ("quick", "full", *MODELS))
                raise UsageError(
                    f"cells={text}: {unknown[0]!r} is not known{near}; use quick, full or parts "
                    f"such as {MODELS[1]}/K=1,5/T=4"
                )
    return tuple(Cell(m, k, t) for m in models for k in steps for t in tasks)


def _numbers(part: str, values: str) -> list[int]:
    numbers = values.split(",")
    if not all(n.isdecimal() and int(n) for n in numbers):
        raise UsageError(f"cells: {part} must be whole numbers of 1 or more, as in K=1,5")
    return [int(n) for n in numbers]
