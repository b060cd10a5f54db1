"""Contestants timed in turns, each once a turn: what else the machine does meets all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def in_turns(
    cell: str, made: Mapping[str, Callable[[], Any]], tasks: int, repeats: int, told: Mapping
) -> list[Mapping[str, Any]]:
    """Seconds a task of each, and how many times as long as the first it took in each turn.

    made: by name; the first is ours. All have run once before. tasks: T of a run. told: by name,
    what else stands in its row.
    """
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, run in made.items():
            started = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - started) / tasks)
    ours = np.array(next(iter(seconds.values())))
    return [
        {
            "cell": cell,
            "by": name,
            "seconds": found,
            "ours_is": [float(ratio) for ratio in np.array(found) / ours],
            **told[name],
        }
        for name, found in seconds.items()
    ]
