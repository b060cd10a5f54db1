"""One method of a comparison, in this process or in one of its own."""

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from metalearn.commands import compare_trained as trained
from metalearn.commands.compare_plan import Plan, family
from metalearn.errors import DataError, UsageError
from metalearn.evaluation.comparison.methods import METHODS
from metalearn.evaluation.comparison.setting import Setting
from metalearn.evaluation.report import write_json
from metalearn.runtime.files import write_atomic
from metalearn.training.episodic import at_sigterm
from metalearn.training.folder import commit

Stage = Literal["train", "measure"]
_STOPPED = 3
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Failed(Exception):
    """A method could not be measured; the message says why, in one line."""


class Stopped(Exception):
    """SIGTERM came, and what was done is kept."""


def result_file(folder: Path, method: str) -> Path:
    """Where the result of a method is kept once it is finished."""
    return folder / "methods" / f"{method}.json"


def stages(method: str) -> tuple[Stage, ...]:
    """Training is a process apart: what it used does not count when adapting is measured."""
    return ("measure",) if method in METHODS else ("train", "measure")


def perform(plan: Plan, method: str, console: Console) -> None:
    """Measure a method, and keep its result. Raises Failed or Stopped."""
    for stage in stages(method):
        if plan.config["isolate"]:
            _apart(plan, stage, method)
        else:
            _guarded(plan, stage, method, console)


def _do(plan: Plan, stage: Stage, method: str, console: Console) -> None:
    if stage == "train":
        if not trained.train(plan.runs[method], console):
            raise Stopped
        return
    started = time.monotonic()
    setting = Setting(plan)
    measured = METHODS[method](setting) if method in METHODS else trained.measure(setting, method)
    result = {
        "method": method,
        "family": family(method),
        **measured.plain(),
        "seconds": time.monotonic() - started,
        "commit": commit(),
    }
    write_json(result_file(plan.folder, method), result)


def _guarded(plan: Plan, stage: Stage, method: str, console: Console) -> None:
    """`_do`, with every exception a `Failed` of one line; a bug's traceback is printed."""
    try:
        _do(plan, stage, method, console)
    except (Stopped, KeyboardInterrupt, SystemExit):
        raise
    except (UsageError, DataError) as error:
        raise Failed(" ".join(str(error).split())) from None
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        raise Failed(f"{type(error).__name__}: {first}") from None


def _apart(plan: Plan, stage: Stage, method: str) -> None:
    """`_guarded` in a process of its own, which ends with this one."""
    why = plan.folder / "methods" / f".{method}.failed"
    why.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=_child, args=(plan, stage, method, why, torch.get_num_threads())
    )
    stopped = []

    def stop() -> None:
        stopped.append(True)
        process.terminate()

    process.start()
    try:
        with at_sigterm(stop):
            process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if stopped or process.exitcode == _STOPPED:
        raise Stopped
    if process.exitcode:
        told = why.read_text(encoding="utf-8") if why.exists() else ""
        raise Failed(told or f"its process ended with code {process.exitcode}")


def _child(plan: Plan, stage: Stage, method: str, why: Path, threads: int) -> None:
    if sys.platform == "linux":  # a parent that is killed cannot end its child
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM)
    torch.set_num_threads(threads)
    try:
        _guarded(plan, stage, method, Console(emoji=False))
    except Failed as error:
        with contextlib.suppress(OSError):
            write_atomic(why, str(error))
        sys.exit(1)
    except (Stopped, KeyboardInterrupt):
        sys.exit(_STOPPED)
