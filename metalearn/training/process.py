"""A step of a longer job in a process of its own, so that what it used counts for itself alone."""

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from metalearn.errors import DataError, UsageError
from metalearn.runtime.files import write_atomic
from metalearn.training.run import at_sigterm

_STOPPED = 3
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Failed(Exception):
    """It could not be done; the message says why, in one line."""


class Stopped(Exception):
    """SIGTERM came, and what was done is kept."""


def guarded(act: Callable[[], None]) -> None:
    """Do `act`, with every exception a `Failed` of one line; a bug's traceback is printed."""
    try:
        act()
    except (Stopped, KeyboardInterrupt, SystemExit):
        raise
    except (UsageError, DataError) as error:
        raise Failed(" ".join(str(error).split())) from None
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        raise Failed(f"{type(error).__name__}: {first}") from None


def apart(act: Callable[[], None], why: Path) -> None:
    """`guarded(act)` in a process of its own, which ends with this one.

    act: can be pickled. why: a file for the reason of a failure. Raises Failed or Stopped.
    """
    why.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_child, args=(act, why, torch.get_num_threads()))
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


def _child(act: Callable[[], None], why: Path, threads: int) -> None:
    if sys.platform == "linux":  # a parent that is killed cannot end its child
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM)
    torch.set_num_threads(threads)
    try:
        guarded(act)
    except Failed as error:
        with contextlib.suppress(OSError):
            write_atomic(why, str(error))
        sys.exit(1)
    except (Stopped, KeyboardInterrupt):
        sys.exit(_STOPPED)
