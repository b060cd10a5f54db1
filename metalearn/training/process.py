"""Steps of a longer job, each in a process of its own, so that what one used counts for itself."""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
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


@dataclass(frozen=True)
class Chain:
    """Acts to be done one after the other, each of which can be pickled and gets a process of its
    own. why: a file for the reason of a failure. log: a file for what they print; None for here."""

    acts: Sequence[Callable[[], None]]
    why: Path
    log: Path | None = None


def apart(
    chains: Mapping[str, Chain], jobs: int = 1, begin: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[str, Failed | None]]:
    """Do the chains, `jobs` at a time, in processes that end with this one; yields the name of each
    that has ended, and why it failed.

    The threads that torch has here are parted among them. begin: told the name before its first
    act. Raises Stopped where a signal came, once all have ended.
    """
    threads = max(torch.get_num_threads() // jobs, 1)
    waiting = [(name, list(chain.acts)) for name, chain in chains.items()]
    running: dict[str, tuple[BaseProcess, list[Callable[[], None]]]] = {}
    ending = Ending()

    def stop(number: int) -> None:
        ending(number)
        for process, _ in list(running.values()):
            process.terminate()

    def start(name: str, acts: list[Callable[[], None]]) -> None:
        chain = chains[name]
        chain.why.unlink(missing_ok=True)
        given = (acts[0], chain.why, threads, chain.log)
        process = multiprocessing.get_context("spawn").Process(target=_child, args=given)
        process.start()
        running[name] = process, acts[1:]

    try:
        with at_ending(stop):
            while running or (waiting and not ending):
                while waiting and len(running) < jobs and not ending:
                    name, acts = waiting.pop(0)
                    begin(name)
                    start(name, acts)
                wait([process.sentinel for process, _ in running.values()])
                for name, (process, acts) in list(running.items()):
                    if process.is_alive():
                        continue
                    process.join()
                    del running[name]
                    if process.exitcode == _STOPPED or process.exitcode in EXIT_CODES:
                        stop(signal.SIGTERM)
                    elif process.exitcode or not (acts or ending):
                        yield name, _failure(process.exitcode, chains[name])
                    elif not ending:
                        start(name, acts)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    if ending:
        raise Stopped(ending.code)


def _failure(code: int | None, chain: Chain) -> Failed | None:
    if not code:
        return None
    told = chain.why.read_text(encoding="utf-8") if chain.why.exists() else ""
    return Failed(told or f"its process ended with code {code}")


def _child(act: Callable[[], None], why: Path, threads: int, log: Path | None) -> None:
    end_with_parent()  # one that is killed cannot end its child
    torch.set_num_threads(threads)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    try:
        guarded(act)
    except Failed as error:
        with contextlib.suppress(OSError):
            write_atomic(why, str(error))
        sys.exit(1)
    except (Stopped, KeyboardInterrupt):
        sys.exit(_STOPPED)
