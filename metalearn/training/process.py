"""A step of a longer job in a process of its own, so that what it used counts for itself alone."""

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from metalearn.errors import one_line
from metalearn.runtime.files import write_atomic
from metalearn.runtime.signals import EXIT_CODES, Ending, at_ending, end_with_parent

_STOPPED = 3


class Failed(Exception):
    """It could not be done; the message says why, in one line."""


class Stopped(Exception):
    """A signal came, and what was done is kept. code: what the command exits with."""

    def __init__(self, code: int = 128 + signal.SIGTERM) -> None:
        super().__init__(code)
        self.code = code


def guarded(act: Callable[[], None]) -> None:
    """Do `act`, with every exception a `Failed` of one line; a bug's traceback is printed."""
    try:
        act()
    except (Stopped, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        if line := one_line(error):
            raise Failed(line) from None
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
    ending = Ending()

    def stop(number: int) -> None:
        ending(number)
        process.terminate()

    process.start()
    try:
        with at_ending(stop):
            process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if ending:
        raise Stopped(ending.code)
    if process.exitcode == _STOPPED or process.exitcode in EXIT_CODES:
        raise Stopped
    if process.exitcode:
        told = why.read_text(encoding="utf-8") if why.exists() else ""
        raise Failed(told or f"its process ended with code {process.exitcode}")


def _child(act: Callable[[], None], why: Path, threads: int) -> None:
    end_with_parent()  # one that is killed cannot end its child
    torch.set_num_threads(threads)
    try:
        guarded(act)
    except Failed as error:
        with contextlib.suppress(OSError):
            write_atomic(why, str(error))
        sys.exit(1)
    except (Stopped, KeyboardInterrupt):
        sys.exit(_STOPPED)
