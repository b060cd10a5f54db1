"""What Hydra runs: one run with options, or the members of a sweep, wherever they are sent."""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from metalearn.commands.building.config import (
    MISTAKES,
    check_sweep,
    compose,
    conf_folder,
    plain,
    register,
)
from metalearn.commands.building.differences import differences
from metalearn.commands.building.mistakes import explain
from metalearn.errors import UsageError, nearest, one_line
from metalearn.runtime.signals import ENDING, EXIT_CODES, Ending, at_ending, end_with_parent, leave

RECORDS = "jobs.jsonl"
_SWEEPING = "METALEARN_SWEEPING"  # the process that a worker belongs to, even before it works
# Hydra's options that make sense here, and whether a value follows.
OPTIONS = {
    **dict.fromkeys(("-m", "--multirun", "-h", "--help", "--hydra-help", "--resolve"), False),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-i", "--info"), True),
    **dict.fromkeys(("-cd", "--config-dir"), True),
}


class Sweep(Callback):
    """Hydra tells it where the sweep of this process keeps its records.

    searches: whether a sweeper chooses the members by their scores. ending: the signal that has
    reached this process, a worker of joblib's.
    """

    folder: Path | None = None
    searches = False
    ending: Ending | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start without records of an earlier sweep in the same folder."""
        Sweep.folder = _folder(config.hydra)
        Sweep.searches = "BasicSweeper" not in config.hydra.sweeper._target_
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
        if "hydra/launcher=submitit_slurm" in overrides and shutil.which("srun") is None:
            raise UsageError(
                "hydra/launcher=submitit_slurm needs Slurm, and there is no srun here; use "
                "hydra/launcher=joblib, or submitit_local"
            )
        os.environ[_SWEEPING] = str(os.getpid())
        if os.environ.pop("WANDB_RUN_ID", None):  # as a sweep agent of W&B sets it
            told = "WANDB_RUN_ID names one run; each member of a sweep gets an id of its own"
            print(f"metalearn: {told}", file=sys.stderr)
    register()
    # Hydra's own handling would print mistakes over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"metalearn {command}", *overrides, *options]  # argparse refuses any other order
    ending = Ending()

    def end(number: int) -> None:
        """Tell the workers that joblib started, which leave checkpoints, and wait for them."""
        children = active_children()
        if not children:
            leave(number)
        ending(number)
        for child in children:
            os.kill(child.pid or 0, number)

    try:
        with at_ending(end):
            hydra.main(str(conf_folder()), command, version_base="1.3")(job)()
    except SystemExit as stop:
        if stop.code in EXIT_CODES:
            print_members(console)
            if not Sweep.searches:
                line = "sweep stopped; the same command goes on from there"
                print(f"metalearn: {line}", file=sys.stderr)
        raise
    except InstantiationException:
        raise  # a bug in what was to be made, not in the overrides
    except MISTAKES as error:
        raise UsageError(explain(error, lambda: compose([], command), command)) from None
    except Exception:
        if not ending:  # a worker that was ended
            raise
    code = print_members(console)
    if ending:
        print("metalearn: sweep stopped; the same command goes on from there", file=sys.stderr)
    if ending or code:
        sys.exit(ending.code if ending else code)


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


def overrides_of(arguments: Sequence[str], command: str) -> list[str] | None:
    """The overrides of a command whose one option is `--cfg job`; None where that has printed the
    configuration. Raises UsageError for another option."""
    overrides, options = split_options(arguments)
    if not options:
        return overrides
    if " ".join(options).replace("=", " ") not in ("--cfg job", "-c job"):
        raise UsageError(f"{command} takes overrides and --cfg job, not {options[0]}")
    print(yaml.safe_dump(compose(overrides, command), sort_keys=False), end="")
    return None


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
    score, code = None, 0
    joblib = "JoblibLauncher" in settings.launcher._target_
    worker = joblib and str(os.getpid()) != os.environ.get(_SWEEPING)  # one job at a time has none
    if worker:
        os.environ.pop("WANDB_RUN_ID", None)
        if Sweep.ending is None:
            Sweep.ending = _worker_ending()
    try:
        values = plain(config, name)
        record["folder"], record["config"] = values["run_dir"], values
        if Sweep.ending:  # its process ended a run before this one
            leave(Sweep.ending.number)
        with at_ending(leave):
            score = run(values, Console(emoji=False))
        record["score"] = score
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        record["ended"] = code
    except Exception as error:
        line = one_line(error)
        if line is None:
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            record["traceback"] = traceback.format_exc()
        record["error"] = line
        print(f"metalearn: job {record['job']} ({record['overrides']}): {line}", file=sys.stderr)
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS).open("a") as file:
        file.write(json.dumps(record) + "\n")
    if code and worker:
        # The worker lives on, or its death would end the others before their checkpoints.
        Sweep.ending(code - 128)  # type: ignore[misc]
        _leave_with_parent(code)
    elif code:  # the members after it are not started
        raise SystemExit(code)
    return score


def _worker_ending() -> Ending:
    """What notes a signal between two runs of this process, which ends with its parent."""
    ending = Ending()
    end_with_parent()
    _leave_with_parent(128 + signal.SIGTERM)  # one that died before
    for number in ENDING:
        signal.signal(number, lambda came, _: ending(came))
    return ending


def _leave_with_parent(code: int) -> None:
    if str(os.getppid()) != os.environ.get(_SWEEPING):
        os._exit(code)


def _folder(settings: Any) -> Path:
    """Of the sweep's records, wherever a member works (hydra.job.chdir)."""
    return Path(settings.runtime.cwd, settings.sweep.dir)


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
        return int(Sweep.folder is not None and not Sweep.searches)
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
        told = f"traceback of job {', '.join(bugs)}: {os.path.relpath(Sweep.folder / RECORDS)}"
        print(f"metalearn: {told}", file=sys.stderr)
    return int(any(row.get("score") is None for row in rows))
