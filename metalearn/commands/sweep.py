"""`metalearn train -m` and `pretrain -m`: the members of a sweep, wherever a launcher runs them."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from metalearn.commands.config import plain
from metalearn.data import DataError
from metalearn.errors import UsageError

RECORDS = "jobs.jsonl"


class Sweep(Callback):
    """Hydra tells it where the sweep of this process keeps its records."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start without records of an earlier sweep in the same folder."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        (Sweep.folder / RECORDS).unlink(missing_ok=True)


def job(config: DictConfig) -> float | None:
    """One job of Hydra's; a module's function, so that launchers can send it elsewhere.

    A member of a sweep that fails returns None and writes its error down: the others go on.
    """
    from metalearn.commands import pretrain
    from metalearn.commands import train as jobs

    settings = HydraConfig.get()
    name = settings.job.name
    run = {"train": jobs.run, "pretrain": pretrain.run}[name]
    if settings.mode != RunMode.MULTIRUN:
        return run(plain(config, name), Console(emoji=False))
    chosen = [o for o in settings.overrides.task if not o.startswith("hydra")]
    record: dict[str, Any] = {"job": settings.job.num, "overrides": " ".join(chosen)}
    score = None
    try:
        values = plain(config, name)
        record["folder"] = values["run_dir"]
        score = run(values, Console(emoji=False))
        record["score"] = score
    except Exception as error:
        line = " ".join(str(error).split())
        if not isinstance(error, UsageError | DataError):
            line = f"{type(error).__name__}: {line}"
            record["traceback"] = traceback.format_exc()
        record["error"] = line
        print(f"metalearn: job {record['job']} ({record['overrides']}): {line}", file=sys.stderr)
    folder = Path(settings.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS).open("a") as file:
        file.write(json.dumps(record) + "\n")
    if score is None and "error" not in record and "BasicLauncher" in settings.launcher._target_:
        # SIGTERM ended this member between two steps; the ones after it are not started.
        raise SystemExit("metalearn: sweep stopped; the same command goes on from there")
    return score


def records() -> list[dict[str, Any]]:
    """What the members of this process's sweep wrote down, in their order."""
    path = Sweep.folder / RECORDS if Sweep.folder else None
    if path is None or not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["job"])


def report(console: Console) -> int:
    """Print one row a member; the exit code: 1 where any failed."""
    rows = records()
    if not rows:
        return 0
    table = Table("job", "overrides", "validation score", box=None, pad_edge=False)
    table.add_column("run folder", overflow="fold")
    words = [row["overrides"].split() for row in rows]
    shared = set.intersection(*map(set, words)) if len(rows) > 1 else set()
    for row, own in zip(rows, words, strict=True):
        failed, score = "error" in row, row.get("score")
        told = "failed" if failed else "stopped" if score is None else f"{score:.4f}"
        where = row["error"] if failed else row["folder"]
        varied = " ".join(word for word in own if word not in shared)
        table.add_row(str(row["job"]), varied, told, where)
    console.print(table)
    bugs = [str(row["job"]) for row in rows if "traceback" in row]
    if bugs and Sweep.folder:
        told = f"traceback of job {', '.join(bugs)}: {Sweep.folder / RECORDS}"
        print(f"metalearn: {told}", file=sys.stderr)
    return int(any(row.get("score") is None for row in rows))
