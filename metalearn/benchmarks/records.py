"""The measurements, a line of JSON for each cell, so that a benchmark can be resumed."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metalearn.benchmarks.cells import Cell

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """Every complete line; a last line that was cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(record) + "\n")


def done(records: Iterable[Record], cell: Cell, settings: Mapping[str, Any]) -> bool:
    """Whether there is a record of the cell with the same settings, measured or not."""
    return any(Cell(**r["cell"]) == cell and r["settings"] == dict(settings) for r in records)


def hopeless(records: Iterable[Record], cell: Cell, settings: Mapping[str, Any], job: str) -> str:
    """Why `job` need not try: it ran out of time or memory on the same network with as few
    steps and tasks, or fewer. "" where it may try."""
    for record in records:
        failed = record.get("workers", {}).get(job, {}).get("too_large")
        if (
            failed
            and record["settings"] == dict(settings)
            and record["cell"]["model"] == cell.model
        ):
            steps, tasks = record["cell"]["steps"], record["cell"]["tasks"]
            if steps <= cell.steps and tasks <= cell.tasks:
                return f"not tried: failed at K={steps} T={tasks} ({failed})"
    return ""
