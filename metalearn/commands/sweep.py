"""`metalearn sweep`: many runs, planned, worked on by any number of workers, and looked at."""

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live

from metalearn.commands.building import words
from metalearn.commands.parts.study_file import COMMANDS, named, read_study
from metalearn.errors import DataError, UsageError, nearest
from metalearn.runtime.files import write_atomic
from metalearn.sweeps.heartbeat import BEAT, Watch, ask_to_stop
from metalearn.sweeps.plan import (
    PLAN,
    SEARCH,
    PlanJobs,
    PlannedRun,
    extend_plan,
    planned,
    read_plan,
)
from metalearn.sweeps.search import read_search, write_search
from metalearn.sweeps.status import LEFT, RUNNING, Standing, retry, standings, summary, table
from metalearn.sweeps.trials import TrialJobs
from metalearn.sweeps.worker import Jobs, work
from metalearn.training.sources import changed, sources

_CHECKS = {"train": "building.meta_training", "pretrain": "pretrain"}


def main(arguments: list[str], console: Console) -> None:
    """`metalearn sweep plan|work|submit|status|retry|stop ...`."""
    action, *rest = arguments or [""]
    if action not in _ACTIONS:
        raise UsageError(
            f"sweep needs one of {', '.join(_ACTIONS)}{nearest(action, _ACTIONS)}, as in metalearn "
            "sweep plan study.yaml"
        )
    act, options = _ACTIONS[action]
    prefixes = ("slurm.",) if "partition" in options else ()
    act(*words.split(rest, f"sweep {action}", options, prefixes), console)


def _plan(places: list[Path], options: dict[str, str], console: Console) -> None:
    if not 1 <= len(places) <= 2:
        raise UsageError("sweep plan needs a file, and may have a folder: sweep plan study.yaml s")
    path = places[0]
    folder = places[1] if places[1:] else path.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name another folder: sweep plan {path} <folder>")
    study = read_study(path)
    other = PLAN if study.search else SEARCH
    if (folder / other).exists():
        raise UsageError(f"{folder} holds another study ({other}); name another folder")
    started = time.monotonic()
    if study.search is not None:
        from metalearn.commands.building.config import on_conf
        from metalearn.commands.parts import study_search

        with on_conf():
            search = study_search.read_search(study, path)
        _composed(study.command, list(study_search.corners(search)), path)
        write_search(folder, search)
        told = f"{search.trials} trials in {folder / SEARCH}"
    else:
        runs = _composed(study.command, study.combinations(), path)
        new = extend_plan(folder, runs)
        told = f"{len(read_plan(folder))} runs in {folder / PLAN}, {new} of them new"
    write_atomic(folder / "study.yaml", path.read_text(encoding="utf-8"))
    told += f" ({time.monotonic() - started:.1f} s)"
    console.print(f"{told}; metalearn sweep work {folder}", soft_wrap=True, highlight=False)


def _composed(command: str, every: Sequence[list[str]], path: Path) -> list[PlannedRun]:
    """Every run of a study, composed and checked. Raises UsageError, a line for each mistake."""
    from metalearn.commands.building.config import composer

    check = importlib.import_module(f"metalearn.commands.{_CHECKS[command]}").check
    runs: list[PlannedRun] = []
    mistakes: dict[str, list[str]] = {}
    shared = set.intersection(*map(set, every)) if every[1:] else set(every[0])
    checked: set[str] = set()
    with composer(command) as compose:
        for overrides in every:
            try:
                config = compose(overrides)
                run = planned(command, overrides, config)
                alike = planned(command, [], {**config, "seed": 0}).key
                if alike not in checked:
                    check(config)
                    checked.add(alike)
                runs.append(run)
            except (UsageError, DataError) as error:
                mistakes.setdefault(str(error), []).append(named(overrides, shared))
    if not mistakes:
        return runs
    for line, where in list(mistakes.items())[:-1]:
        print(f"metalearn: {_mistake(path, line, where)}", file=sys.stderr)
    raise UsageError(_mistake(path, *list(mistakes.items())[-1]))


def _mistake(path: Path, line: str, where: Sequence[str]) -> str:
    more = f" and {len(where) - 1} more" if where[1:] else ""
    return f"{path}: {where[0]}{more}: {line}"


def jobs_of(folder: Path) -> Jobs:
    """What there is to do in a study. Raises UsageError where there is none."""
    read_plan(folder)
    if (folder / SEARCH).exists():
        search = read_search(folder)

        def composed(overrides: Sequence[str]) -> dict[str, Any]:
            from metalearn.commands.building.config import compose

            return compose(overrides, search.command)

        return TrialJobs(folder, search, composed, _performer(search.command))
    return PlanJobs(folder, {name: _performer(name) for name in COMMANDS}, _check_sources)


def _performer(command: str) -> Callable[..., float | None]:
    """Imported when it is first used: a look at a study needs no training."""

    def perform(config: dict[str, Any], console: Console, *watch: Any) -> float | None:
        return importlib.import_module(f"metalearn.commands.{command}").run(config, console, *watch)

    return perform


def _check_sources(config: dict[str, Any]) -> None:
    if edited := changed(config.get("sources"), sources(config)):
        raise UsageError(f"{edited} since this run was planned; plan the study again")


def _work(places: list[Path], options: dict[str, str], console: Console) -> None:
    folder = _folder("work", places)
    minutes, most = words.number(options, "minutes"), words.whole(options, "most")
    wait, cpus = words.flag(options, "wait", True), words.whole(options, "cpus")
    jobs, before = jobs_of(folder), torch.get_num_threads()
    if cpus or "OMP_NUM_THREADS" not in os.environ:
        # Workers that took every core each would wait for one another at every operation.
        torch.set_num_threads(cpus or 1)
    try:
        failed = work(folder, jobs, console, minutes, most, wait)
    finally:
        torch.set_num_threads(before)
    _tell_best(jobs, console)
    # torchrun would end the other workers.
    if failed and "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(1)


def _submit(places: list[Path], options: dict[str, str], console: Console) -> None:
    from metalearn.commands.parts.study_submit import EXECUTORS, submit

    folder = _folder("submit", places)
    executor = options.pop("executor", "slurm")
    if executor not in EXECUTORS:
        raise UsageError(f"executor={executor} is not known; use {' or '.join(EXECUTORS)}")
    slurm = {n.removeprefix("slurm."): v for n, v in options.items() if n.startswith("slurm.")}
    slurm |= {"partition": options["partition"]} if "partition" in options else {}
    if slurm and executor != "slurm":
        raise UsageError(f"{next(iter(slurm))} is of executor=slurm; leave it out")
    workers, minutes = words.whole(options, "workers") or 4, words.whole(options, "minutes")
    jobs_of(folder)
    submit(folder, workers, executor, console, minutes, words.whole(options, "cpus") or 1, slurm)


def _status(places: list[Path], options: dict[str, str], console: Console) -> None:
    folder, every = _folder("status", places), words.number(options, "watch")
    jobs, watch = jobs_of(folder), Watch(folder)
    found = standings(folder, jobs, watch)
    heard = [one.worker for one in found if one.state == RUNNING and watch.elsewhere(one.worker)]
    if heard and every is None:
        # Of those nothing is known but whether their beat changes.
        told = f"listening to {len(set(heard))} workers on other machines ..."
        console.print(told, highlight=False)
        watch.silent = 2.5 * BEAT
        time.sleep(watch.silent + 1)
        found = standings(folder, jobs, watch)
    if every is None:
        _show(found, watch, console)
        _tell_best(jobs, console)
        return
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(table(found, watch), refresh=True)
            if not any(one.state in (RUNNING, LEFT, "waiting") for one in found):
                break
            time.sleep(every)
            found = standings(folder, jobs, watch)


def _tell_best(jobs: Jobs, console: Console) -> None:
    if isinstance(jobs, TrialJobs) and (line := jobs.best()):
        console.print(line, soft_wrap=True, highlight=False)


def _show(found: Sequence[Standing], watch: Watch, console: Console) -> None:
    console.print(summary(found), soft_wrap=True, highlight=False)
    shown = table(found, watch)
    if shown.row_count:
        shown.title = None
        console.print(shown)


def _retry(places: list[Path], options: dict[str, str], console: Console) -> None:
    folder = _folder("retry", places)
    again = retry(folder, jobs_of(folder))
    told = f"{len(again)} failed runs wait again" if again else "no run has failed"
    console.print(told, highlight=False)


def _stop(places: list[Path], options: dict[str, str], console: Console) -> None:
    folder = _folder("stop", places)
    jobs_of(folder)
    asked = ask_to_stop(folder)
    told = f"{len(asked)} workers are asked to leave a checkpoint and end" if asked else "no worker"
    console.print(f"{told}; metalearn sweep work {folder} goes on", soft_wrap=True, highlight=False)


def _folder(action: str, places: list[Path]) -> Path:
    if len(places) != 1:
        raise UsageError(f"sweep {action} needs the folder of a study: sweep {action} <folder>")
    if not places[0].is_dir():
        how = "a file" if places[0].exists() else "not there"
        raise UsageError(f"{places[0]} is {how}; metalearn sweep plan study.yaml makes a study")
    return places[0]


_ACTIONS: dict[str, tuple[Callable[[list[Path], dict[str, str], Console], None], tuple[str, ...]]]
_ACTIONS = {
    "plan": (_plan, ()),
    "work": (_work, ("minutes", "most", "wait", "cpus")),
    "submit": (_submit, ("workers", "partition", "minutes", "cpus", "executor")),
    "status": (_status, ("watch",)),
    "retry": (_retry, ()),
    "stop": (_stop, ()),
}
