"""The tracker of a run: it passes every record to several sinks."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self

Status = Literal["finished", "failed", "interrupted"]


class RunInfo(NamedTuple):
    """A run before its first step, as the sinks see it.

    config: the composed configuration, plain dicts, lists and scalars.
    steps: meta-steps of the whole run.
    resume_step: meta-steps of the checkpoint that the run resumes from, so that records of later
        steps are dropped; None for a new run.
    record_every: steps between two records of scalars.
    seconds: of training that are left, where a clock may end it before `steps` do.
    wandb_id: the id that an earlier `Tracker.start` returned, kept in the checkpoint.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    commit: str | None
    seed: int
    steps: int
    resume_step: int | None = None
    wandb_id: str | None = None
    seconds: float | None = None
    record_every: int = 1


class Sink(Protocol):
    """A destination of records. Steps count finished meta-steps, so the first record has step 1."""

    def start(self, run: RunInfo) -> dict[str, Any]: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def episodes(self, step: int, split: str, values: Mapping[str, Sequence[float]]) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def close(self, status: Status) -> None: ...


class Tracker:
    """Passes every record to every sink; itself a sink.

    Keys that the sinks know: `loss`, `accuracy` (fraction), `learning_rate`,
    `tasks_per_second`, `images_per_second`, `held_out_accuracy`, `peak_memory_bytes`. Others are
    kept as they come.

    As a context manager it closes with "finished", with "interrupted" on KeyboardInterrupt
    or SystemExit, and with "failed" on any other exception.
    """

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self.sinks = tuple(sinks)
        self._closed = False

    def start(self, run: RunInfo) -> dict[str, Any]:
        """Open every sink; returns what the checkpoint should hold (`wandb_id`)."""
        identity: dict[str, Any] = {}
        for sink in self.sinks:
            identity |= sink.start(run)
        return identity

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record one value a name for a meta-step; zero-dimensional tensors are taken too."""
        plain = {name: float(value) for name, value in values.items()}
        for sink in self.sinks:
            sink.scalars(step, plain)

    def episodes(self, step: int, split: str, values: Mapping[str, Sequence[float]]) -> None:
        """Record one value an episode for every name.

        split: "train" after a meta-step with its T episodes, "val" or "test" after an
            evaluation with all of its episodes.
        values: lists, arrays or tensors of one length; "index", if given, holds the number of
            each episode in its split.

        Raises ValueError where the lengths differ.
        """
        plain: dict[str, list[float]] = {}
        for name, value in values.items():
            items: Any = value.tolist() if hasattr(value, "tolist") else value  # type: ignore
            plain[name] = [int(item) if name == "index" else float(item) for item in items]
        if len({len(value) for value in plain.values()}) > 1:
            lengths = {name: len(value) for name, value in plain.items()}
            raise ValueError(f"per-episode values must have one length, got {lengths}")
        for sink in self.sinks:
            sink.episodes(step, split, plain)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the results of the whole run."""
        for sink in self.sinks:
            sink.summary(values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table of numbers, texts and None.

        Raises ValueError where a row has not a value for every column.
        """
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"every row of {name} needs {len(columns)} values: {list(columns)}")
        for sink in self.sinks:
            sink.table(name, columns, rows)

    def close(self, status: Status = "finished") -> None:
        """Close every sink, also where one fails to; the first failure is raised afterwards."""
        if self._closed:
            return
        self._closed = True
        failure: Exception | None = None
        for sink in self.sinks:
            try:
                sink.close(status)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self.close("finished" if kind is None else "interrupted" if stopped else "failed")
