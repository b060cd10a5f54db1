"""Signals that end a command: SIGTERM and SIGHUP after a checkpoint, Ctrl-C without a traceback.

A command that a signal ended exits with 128 + its number, as shells count it.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl
EXIT_CODES = [128 + number for number in ENDING]


class Ending:
    """True once a signal has asked for the end; an `act` of `at_ending`."""

    number = 0

    def __call__(self, number: int) -> None:
        self.number = self.number or number

    def __bool__(self) -> bool:
        return self.number > 0

    @property
    def code(self) -> int:
        """The exit code."""
        return 128 + self.number


@contextmanager
def at_ending(act: Callable[[int], None]) -> Iterator[None]:
    """Do `act`, which gets its number, at SIGTERM or SIGHUP instead of dying.

    Only the main thread can; elsewhere nothing changes. What is ignored (nohup) stays so.
    """
    before = handle_ending(act)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_ending(act: Callable[[int], None]) -> dict[int, Any]:
    """`at_ending` from here on, in the main thread; what handled each signal before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [n for n in ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    return {n: signal.signal(n, lambda number, _: act(number)) for n in numbers}


def end_with_parent() -> None:
    """SIGTERM comes when the process that started this one dies, even if it is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM)


def leave(number: int) -> None:
    """An `act` of `at_ending` that ends the command at once."""
    raise SystemExit(128 + number)


def _stop(*_: Any) -> None:
    os._exit(128 + signal.SIGINT)


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once and in silence: for imports, which no handler can leave."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _stop):
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if sys.orig_argv[1:3] in (["-m", "metalearn.cli"], ["-m", "metalearn"]):
    # Until `cli.main` imports its command.
    signal.signal(signal.SIGINT, _stop)
