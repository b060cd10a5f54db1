"""What Hydra runs: one run with options, or the members of a sweep, wherever they are sent."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from metalearn.commands.config import (
    MISTAKES,
    check_sweep,
    compose,
    conf_folder,
    plain,
    register,
)
from metalearn.commands.differences import differences
from metalearn.commands.mistakes import explain
from metalearn.data import DataError
from metalearn.errors import UsageError, nearest

RECORDS = "jobs.jsonl"
# Hydra's options that make sense here, and whether a value follows.
OPTIONS = {
    **dict.fromkeys(("-m", "--multirun", "-h", "--help", "--hydra-help", "--resolve"), False),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-i", "--info"), True),
    **dict.fromkeys(("-cd", "--config-dir"), True),
}


class Sweep(Callback):
    """Hydra tells it where the sweep of this process keeps its records."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start without records of an earlier sweep in the same folder."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        (Sweep.folder / RECORDS).unlink(missing_ok=True)


def start(
    command: str,
    run: Callable[[dict[str, Any], Console], float | None],
    arguments: list[str],
    console: Console,
) -> None:
    """`run` on the configuration of `command`; options (-m, --cfg, ...) are for Hydra's own main.

    Raises UsageError; exits with 1 where a member of a sweep failed.
    """
    if not any(argument.startswith("-") for argument in arguments):
        run(compose(arguments, command), console)
        return
    overrides, options = split_options(arguments)
    if {"-m", "--multirun"} & set(options):
        check_sweep(overrides, command)
    register()
    # Hydra's own handling would print mistakes over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"metalearn {command}", *overrides, *options]  # argparse refuses any other order
    try:
        hydra.main(str(conf_folder()), command, version_base="1.3")(job)()
    except InstantiationException:
        raise  # a bug in what was to be made, not in the overrides
    except MISTAKES as error:
        raise UsageError(explain(error, lambda: compose([], command), command)) from None
    except ValueError:
        # Optuna has no best trial to write where every trial failed; each has had its line.
        if not all("error" in record for record in records() or [{}]):
            raise
    if code := print_members(console):
        sys.exit(code)


def split_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and options. Raises UsageError for an option that is not Hydra's."""
    rest = iter(arguments)
    overrides: list[str] = []
    options: list[str] = []
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, given, value = argument.partition("=")
        if name not in OPTIONS:
            raise UsageError(f"no option {name}{nearest(name, OPTIONS)}; use {', '.join(OPTIONS)}")
        options.append(argument)
        if OPTIONS[name] and not given and (value := next(rest, "")):
            options.append(value)
        if name in ("-c", "--cfg") and value not in ("job", "hydra", "all"):
            raise UsageError(f"{name} needs job, hydra or all")
    return overrides, options


def job(config: DictConfig) -> float | None:
    """One job of Hydra's; a module's function, so that launchers can send it elsewhere.

    A member of a sweep that fails returns None and writes its error down: the others go on.
    """
    settings = HydraConfig.get()
    name = settings.job.name
    run = import_module(f"metalearn.commands.{name}").run
    if settings.mode != RunMode.MULTIRUN:
        return run(plain(config, name), Console(emoji=False))
    chosen = [o for o in settings.overrides.task if not o.startswith("hydra")]
    record: dict[str, Any] = {"job": settings.job.num, "overrides": " ".join(chosen)}
    score = None
    try:
        values = plain(config, name)
        record["folder"], record["config"] = values["run_dir"], values
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


def print_members(console: Console) -> int:
    """Print one row a member; the exit code: 1 where any failed."""
    rows = records()
    if not rows:
        return 0
    table = Table("job", "overrides", "validation score", box=None, pad_edge=False)
    words = [row["overrides"].split() for row in rows]
    named = [[word.partition("=")[0].lstrip("+~").replace("/", ".") for word in w] for w in words]
    others = differences([row.get("config") for row in rows], named)
    if any(others):
        table.add_column("differs too", overflow="fold")
    table.add_column("run folder", overflow="fold")
    shared = set.intersection(*map(set, words)) if len(rows) > 1 else set()
    for row, own, other in zip(rows, words, others, strict=True):
        failed, score = "error" in row, row.get("score")
        told = "failed" if failed else "stopped" if score is None else f"{score:.4f}"
        where = row["error"] if failed else row["folder"]
        varied = " ".join(word for word in own if word not in shared)
        table.add_row(str(row["job"]), varied, told, *([other] if any(others) else []), where)
    console.print(table)
    bugs = [str(row["job"]) for row in rows if "traceback" in row]
    if bugs and Sweep.folder:
        told = f"traceback of job {', '.join(bugs)}: {Sweep.folder / RECORDS}"
        print(f"metalearn: {told}", file=sys.stderr)
    return int(any(row.get("score") is None for row in rows))
