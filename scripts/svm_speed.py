"""Our SVM on a batch of tasks beside a loop over cvxpy: the same problems, in turns, in one thread.

    uv run --with cvxpy python -m scripts.svm_speed

32 tasks of 5 ways, 1 and 5 shots, features drawn by numpy, strength 0.1. cvxpy as fast as its users
get it: one problem whose parameter is the features, or a root of their kernel, compiled once and
solved anew for each task, by every solver that it comes with; and as it is first written, a problem
for each task. The fastest of 9 turns counts. Prints a table and writes `svm_speed.md` and
`svm_speed.json` into `experiments/methods`.
"""

import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalearn.benchmarks.machine import describe
from metalearn.benchmarks.report import markdown_table
from metalearn.classifiers import SVM
from metalearn.runtime.files import write_atomic
from metalearn.runtime.memory import keep_freed_memory
from metalearn.types import Batch

OUT = Path("experiments/methods")
TASKS, WAYS, FEATURES, STRENGTH, TURNS = 32, 5, 64, 0.1, 9
TIGHT = {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 100_000}
SOLVERS = (("CLARABEL", {}), ("OSQP", {}), ("OSQP", TIGHT), ("HIGHS", {}))


class Loop:
    """cvxpy on one task after another. root: the parameter is a root of the kernel, not the
    features. compiled: one problem for all."""

    def __init__(
        self, shots: int, solver: str, options: dict[str, Any], root: bool, compiled: bool
    ):
        self.size, self.solver, self.options = WAYS * shots, solver, options
        self.root, self.compiled = root, compiled
        self.hot = np.eye(WAYS)[:, np.tile(np.arange(WAYS), shots)]
        self.problem = self._made() if compiled else None

    def _made(self) -> tuple[Any, Any, Any]:
        import cvxpy  # type: ignore[import-not-found]  (a peer, which not everyone has)

        a = cvxpy.Variable((WAYS, self.size))
        root = cvxpy.Parameter((self.size, self.size if self.root else FEATURES))
        loss = cvxpy.sum_squares(a @ root) / 2 - cvxpy.sum(cvxpy.multiply(self.hot, a))
        bounds = [a <= STRENGTH * self.hot, cvxpy.sum(a, axis=0) == 0]
        return cvxpy.Problem(cvxpy.Minimize(loss), bounds), root, a

    def __call__(self, tasks: np.ndarray) -> np.ndarray:
        """The weights `[T, N, D]` of features `[T, S, D]`."""
        found = []
        for x in tasks:
            problem, root, a = self.problem or self._made()
            kernel = x @ x.T
            # So far from singular that it has a root.
            ridge = 1e-9 * np.trace(kernel) / len(x) * np.eye(len(x))
            root.value = np.linalg.cholesky(kernel + ridge) if self.root else x
            problem.solve(solver=self.solver, **self.options)
            found.append(a.value @ x)
        return np.stack(found)

    def __str__(self) -> str:
        how = ("kernel's root" if self.root else "features") if self.compiled else "anew"
        return f"cvxpy, {self.solver}{' to 1e-9' if self.options else ''}, {how}"


def ours(tasks: np.ndarray) -> np.ndarray:
    """As `evaluate` does: all at once, without derivatives."""
    x, shots = torch.from_numpy(tasks), tasks.shape[1] // WAYS
    y = torch.arange(WAYS).repeat(shots).expand(len(x), -1)
    with torch.no_grad():
        return SVM(STRENGTH, ways=WAYS).fit({}, Batch(x, y))["weight"].mT.numpy()


def raced(runs: Sequence[Callable[[], np.ndarray]]) -> tuple[list[float], list[np.ndarray]]:
    """The fewest processor seconds of each, in turns, and what each returned."""
    found = [run() for run in runs]  # once before the clock runs
    best = [float("inf")] * len(runs)
    for _ in range(TURNS):
        for n, run in enumerate(runs):
            start = time.process_time()
            run()
            best[n] = min(best[n], time.process_time() - start)
    return best, found


def rows(shots: int) -> list[dict[str, Any]]:
    """Of one number of shots: ours, and cvxpy by every solver."""
    generator = np.random.default_rng(shots)
    tasks = generator.standard_normal((TASKS, WAYS * shots, FEATURES)) + 0.2
    loops = [
        *(Loop(shots, name, how, root, True) for name, how in SOLVERS for root in (True, False)),
        Loop(shots, "CLARABEL", {}, False, False),
    ]
    usable = [loop for loop in loops if not (loop.solver == "HIGHS" and not loop.root)]
    seconds, found = raced([partial(run, tasks) for run in (ours, *usable)])
    # As near as a solver gets: ours after twice the steps, one task after another.
    exact = np.stack([_exact(x, shots) for x in tasks])
    return [
        {
            "shots": shots,
            "by": name,
            "seconds": spent,
            "error": float(np.abs(w - exact).max()),
            "ratio": spent / seconds[0],
        }
        for name, spent, w in zip(["ours", *map(str, usable)], seconds, found, strict=True)
    ]


def _exact(x: np.ndarray, shots: int) -> np.ndarray:
    y = torch.arange(WAYS).repeat(shots)
    fitted = SVM(STRENGTH, steps=30, ways=WAYS).fit({}, Batch(torch.from_numpy(x), y))
    return fitted["weight"][:, :WAYS].T.numpy()


def main() -> None:
    """Measure, print and write."""
    warnings.simplefilter("ignore")  # cvxpy's
    torch.set_num_threads(1)
    keep_freed_memory()
    made = [row for shots in (1, 5) for row in rows(shots)]
    packages = {n: importlib.metadata.version(n) for n in ("cvxpy", "clarabel", "osqp", "highspy")}
    command = "uv run --with cvxpy python -m scripts.svm_speed"
    record = {"command": command, "rows": made, "packages": packages, "machine": describe("cpu")}
    OUT.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT / "svm_speed.json", json.dumps(record, indent=2) + "\n")
    write_atomic(OUT / "svm_speed.md", page(record))
    print(page(record))


def page(record: dict[str, Any]) -> str:
    """The table in Markdown."""
    machine = record["machine"]
    body = [
        (
            *(str(r["shots"]), r["by"], f"{1e3 * r['seconds']:.1f}", f"{r['error']:.0e}"),
            f"{r['ratio']:.1f}",
        )
        for r in record["rows"]
    ]
    versions = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    return (
        f"# The SVM on {TASKS} tasks beside a loop over cvxpy\n\n"
        f"`{record['command']}`: {WAYS} ways, {FEATURES} features, strength {STRENGTH:g}, double "
        f"precision; processor milliseconds of one thread for all tasks, the fewest of {TURNS} "
        f"turns, and the largest difference of a weight from the optimum. cvxpy: one problem "
        f"compiled once, whose parameter is the kernel's root or the features; anew: a problem for "
        f"each task. {machine['cpu']}, Python {machine['python']}, torch {torch.__version__}, "
        f"{versions}.\n\n"
        f"{markdown_table(('shots', 'by', 'ms', 'error', 'of ours'), body)}\n"
    )


if __name__ == "__main__":
    main()
