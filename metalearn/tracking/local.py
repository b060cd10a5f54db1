"""Records as JSON lines in the run folder: complete for every run, with or without W&B."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from metalearn.runtime.files import decode_floats, encode_floats, write_atomic
from metalearn.tracking.tracker import RunInfo, Status


class JsonLines:
    """Appends one JSON object a record to `<run folder>/metrics.jsonl`.

    Every record has `kind` ("scalars", "episodes", "summary" or "table"), `step`, `time` (seconds
    since 1970) and the values under their own names; "episodes" also has `split`. JSON has no
    number for NaN and the infinities, so they are written as the strings "nan", "inf", "-inf",
    which keeps them apart; `read_records` gives the floats back.
    """

    def __init__(
        self, filename: str = "metrics.jsonl", warn: Callable[[str], None] = lambda line: None
    ) -> None:
        self.filename, self.warn = filename, warn
        self._file: TextIO | None = None
        self._step = 0

    def start(self, run: RunInfo) -> dict[str, Any]:
        """Open the file, after dropping what a resumed run will write again.

        Records of steps after `run.resume_step` go (all of them where it is None), and so do
        lines that a killed process left unfinished. Earlier records that are gone or damaged are
        told to `warn`, and those that are left are kept.
        """
        path = run.folder / self.filename
        run.folder.mkdir(parents=True, exist_ok=True)
        self._step = run.resume_step or 0
        newest, damaged = _drop_after(path, run.resume_step) if path.exists() else (0, 0)
        if (due := self._step - self._step % run.record_every) > newest:
            since = f"ends at step {newest}" if newest else "is gone or holds nothing"
            self.warn(f"{path} {since}: its records up to step {due} are lost; the run goes on")
        elif damaged:
            self.warn(f"{path} had {damaged} damaged lines, which are left out; the run goes on")
        self._file = path.open("a", buffering=1, encoding="utf-8")
        return {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write({"kind": "scalars", "step": step}, values)

    def episodes(self, step: int, split: str, values: Mapping[str, Sequence[float]]) -> None:
        self._write({"kind": "episodes", "step": step, "split": split}, values)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._write({"kind": "summary", "step": self._step}, values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        values = {"name": name, "columns": list(columns), "rows": [list(row) for row in rows]}
        self._write({"kind": "table", "step": self._step}, values)

    def close(self, status: Status) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, head: dict[str, Any], values: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("JsonLines takes records only between start() and close()")
        self._step = head["step"]
        record = head | {"time": round(time.time(), 3)} | encode_floats(dict(values))
        self._file.write(json.dumps(record, allow_nan=False) + "\n")


def read_records(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics file, oldest first, also while a run still writes it.

    An unfinished last line is left out. Raises ValueError at a damaged line before the last,
    FileNotFoundError where there is no file.
    """
    with Path(path).open("rb") as file:
        damaged: int | None = None
        for number, line in enumerate(file, 1):
            if damaged is not None:
                raise ValueError(f"{path}: line {damaged} is damaged; remove it to read the rest")
            record = _parse(line)
            if record is None:
                damaged = number
            else:
                yield record


def _drop_after(path: Path, step: int | None) -> tuple[int, int]:
    """The newest step of the scalars that are left, and how many lines before the last were
    damaged."""
    lines: list[str] = []
    newest, damaged, cut = 0, 0, False
    if step is not None:
        with path.open("rb") as file:
            for line in file:
                damaged, cut = damaged + cut, False
                record = _parse(line)
                if record is None:
                    cut = True
                    continue
                # A test comes after the last checkpoint, so a resumed run makes it again.
                if str(record.get("split")).partition(" ")[0] == "test":
                    continue
                if record["step"] <= step and record.get("kind") != "summary":
                    lines.append(line.decode("utf-8").rstrip("\n") + "\n")
                    newest = max(newest, record["step"])
    write_atomic(path, "".join(lines))
    return newest, damaged


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # a cut line, or bytes that are no UTF-8
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return decode_floats(record) if whole else None
