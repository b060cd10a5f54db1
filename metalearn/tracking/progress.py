"""A live progress line on a terminal; elsewhere a plain line at intervals."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from metalearn.tracking.tracker import RunInfo, Status

_UPDATE_SECONDS = 0.1
_REFRESHES_PER_SECOND = 5


class Progress:
    """Shows step, loss, accuracy, tasks/s and time left; evaluations get a line that stays.

    On a terminal one line is redrawn in place, below whatever else is printed through the
    console or to stdout. Elsewhere (a file, a pipe, Slurm) a plain line without control codes
    is printed every `interval` seconds, and one at the last step.

    console: where to print; other lines of the program should go through the same one.
    interval: seconds between plain lines.
    clock: seconds, monotonic. budget: the clock whose seconds may end the run, where it is another.
    """

    def __init__(
        self,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        budget: Callable[[], float] | None = None,
    ) -> None:
        self.console = console or Console(emoji=False)
        self.interval = interval
        self._clock, self._budget = clock, budget or clock
        self._bar: Bar | None = None
        self._task: Any = None
        self._steps = 0
        self._end: float | None = None  # when the budget ends the run
        self._first: tuple[int, float] | None = None
        self._shown = -math.inf

    def start(self, run: RunInfo) -> dict[str, Any]:
        self._steps = run.steps
        self._shown = self._clock()
        self._end = None if run.seconds is None else self._budget() + run.seconds
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                refresh_per_second=_REFRESHES_PER_SECOND,
            )
            self._task = self._bar.add_task(
                run.name,
                total=run.steps if self._end is None else None,
                completed=run.resume_step or 0,
                status="",
            )
            self._bar.start()
            self._shown = -math.inf
        return {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = self._clock()
        if "held_out_accuracy" in values:  # of a validation
            accuracy = _quantity("accuracy", values["held_out_accuracy"])
            self._print(f"val at step {step}: {accuracy} on held-out images of the base classes")
        # The clock starts after the first step, which also pays for compilation and caches.
        self._first = self._first or (step, now)
        wait = self.interval if self._bar is None else _UPDATE_SECONDS
        if now - self._shown < wait and step < self._steps:
            return
        self._shown = now
        steps = self._steps if self._end is None else None
        line = format_line(step, steps, values, self._seconds_left(step, now))
        if self._bar is None:
            self._print(line)
        else:
            self._bar.update(self._task, completed=step, status=line)

    def episodes(self, step: int, split: str, values: Mapping[str, Sequence[float]]) -> None:
        if split == "train":
            return
        parts = [f"{split} at step {step}:"]
        shown = [name for name in ("accuracy", "loss") if values.get(name)]
        parts += [_quantity(name, math.fsum(values[name]) / len(values[name])) for name in shown]
        count = max((len(items) for items in values.values()), default=0)
        self._print(" ".join(parts) + f" over {count} episodes")

    def summary(self, values: Mapping[str, Any]) -> None:
        """Prints nothing: the command prints the table of results."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints nothing."""

    def close(self, status: Status) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, step: int, now: float) -> float | None:
        if self._end is not None:
            return max(self._end - self._budget(), 0.0)
        if self._first is None or step <= self._first[0]:
            return None
        first, since = self._first
        return (now - since) / (step - first) * max(self._steps - step, 0)

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def format_line(
    step: int, steps: int | None, values: Mapping[str, float], seconds_left: float | None
) -> str:
    """Format one status line, such as `120/2000  loss 0.412  accuracy 87.5%  ...`.

    steps: of the whole run; None where a clock ends it.
    """
    parts = [f"step {step}" if steps is None else f"{step}/{steps}"]
    parts += [_quantity(name, values[name]) for name in ("loss", "accuracy") if name in values]
    for unit in ("tasks", "images"):
        if f"{unit}_per_second" in values:
            parts.append(f"{values[f'{unit}_per_second']:.1f} {unit}/s")
    if seconds_left is not None:
        parts.append(f"{_duration(seconds_left)} left")
    return "  ".join(parts)


def _quantity(name: str, value: float) -> str:
    return f"{name} {value:.1%}" if name == "accuracy" else f"{name} {value:.4g}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
