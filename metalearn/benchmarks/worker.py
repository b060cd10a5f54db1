"""One framework in a process of its own, controlled by lines of JSON.

    python -m metalearn.benchmarks.worker '{"framework": "ours", "threads": 2, ...}'

Answers stand on standard output alone, one line a command: {"error": ...} where it failed.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

NOISES = 8
"""How often inputs are changed at random to measure the effect of rounding on a gradient."""


def confine(threads: int) -> None:
    """Use `threads` processors, in every library. Before any of them is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


class Worker:
    """The commands. Their arguments and answers are plain JSON."""

    def __init__(self, framework: str, device: str, threads: int, allocator: str):
        import torch

        from metalearn.benchmarks import machine
        from metalearn.runtime.memory import keep_freed_memory

        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.framework, self.device, self.runner = framework, device, None
        self.keeps_memory = allocator == "tuned" and keep_freed_memory()
        if device == "cpu":
            machine.limit_memory()

    def imported(self) -> None:
        """Load the framework while other processes do too; `hello` says where that fails."""
        from metalearn.benchmarks.frameworks import load

        with contextlib.suppress(Exception):
            load(self.framework)

    def hello(self) -> dict[str, Any]:
        """Load the framework, and let it take one small meta-step: what it imports at its first
        call is no part of the time that it compiles."""
        from metalearn.benchmarks.cells import Cell
        from metalearn.benchmarks.frameworks import load

        self.prepare_cell = load(self.framework)
        runner = self.prepare_cell(Cell("mlp", 1, 1), self.device)
        runner.wait(runner.step())
        return {"keeps_memory": self.keeps_memory}

    def machine(self) -> dict[str, Any]:
        """What the machine is and can do with these threads."""
        from metalearn.benchmarks import machine

        return {**machine.describe(self.device), "matmul": machine.matmul_rates(self.device)}

    def reference(self, cell: dict[str, Any], path: str, steady: float) -> dict[str, Any]:
        """The float64 meta-gradient into `path`, how far float32 is from it, and how far when
        the inputs are changed by a few roundings: the largest of several, or the first above
        `steady`."""
        import torch
        from safetensors.torch import save_file

        from metalearn.benchmarks.cells import Cell
        from metalearn.benchmarks.distance import distance
        from metalearn.benchmarks.frameworks import plain

        exact = plain.reference(Cell(**cell), self.device)
        save_file(exact, path)

        def error(noise: int | None = None) -> float:
            single = plain.reference(Cell(**cell), self.device, torch.float32, noise)
            return distance(single, exact)[0]

        first = largest = error()
        for noise in range(NOISES):
            if largest <= steady:
                largest = max(largest, error(noise))
        return {"float32_error": first, "rounding_error": largest}

    def prepare(self, cell: dict[str, Any], path: str) -> dict[str, Any]:
        """A first meta-step, whose gradient goes into `path`, and a second one for its memory
        and its time."""
        from safetensors.torch import save_file

        from metalearn.benchmarks import machine
        from metalearn.benchmarks.cells import Cell

        self.runner = None
        machine.trim()
        self.runner = self.prepare_cell(Cell(**cell), self.device)
        start = time.perf_counter()
        result = self.runner.step()
        self.runner.wait(result)
        first = time.perf_counter() - start
        gradient = self.runner.gradient(result)
        save_file({n: g.detach().cpu().contiguous() for n, g in gradient.items()}, path)
        del result, gradient
        second: dict[str, float] = {}
        memory = machine.peak_growth(self.device, lambda: second.update(self.time(1)))
        if self.device == "cuda" and self.framework.startswith("jax"):
            memory = _jax_peak()
        return {"first": first, "steady": second["seconds"], "memory": memory}

    def time(self, calls: int) -> dict[str, Any]:
        """Seconds of `calls` meta-steps."""
        assert self.runner is not None
        start = time.perf_counter()
        for _ in range(calls):
            result = self.runner.step()
        self.runner.wait(result)
        return {"seconds": time.perf_counter() - start}

    def rest(self) -> dict[str, Any]:
        """Give memory back while others work; the next timed call should be preceded by another."""
        from metalearn.benchmarks import machine

        machine.trim()
        return {}


def _jax_peak() -> int | None:
    """The peak of JAX's allocator since the process started, in bytes."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def serve(worker: Worker, say: Callable[[dict[str, Any]], None]) -> None:
    """Answer every line of standard input."""
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:  # whatever goes wrong in a peer is a result
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        say(answer)


def main() -> None:
    """Entry point: settings as JSON in the first argument."""
    settings = json.loads(sys.argv[1])
    confine(settings["threads"])
    # Whatever a library prints goes to the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(**settings)
    worker.imported()
    serve(worker, lambda answer: print(json.dumps(answer), file=answers))


if __name__ == "__main__":
    main()
