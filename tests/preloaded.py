"""New processes without the seconds that importing torch takes.

They are forked by a process that has imported the package and done nothing else
(`multiprocessing`'s fork server), and have numbers, folders, environments, outputs and signals of
their own. Not for a test of how Python starts, of what is imported, or of fresh memory.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Self

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "metalearn.cli", "metalearn.commands.train", "metalearn.commands.compare"]
)
COMMAND = "from metalearn.cli import main; main()"


class Process:
    """`python -c <code> <arguments>` that runs: what `subprocess.Popen` offers of it, as text."""

    def __init__(self, code: str, *arguments: str, env: Mapping[str, str] = os.environ) -> None:
        (given, stdin), (stdout, told), (stderr, complained) = (_CONTEXT.Pipe(False) for _ in "123")
        theirs = (given, told, complained)
        started = (code, arguments, dict(env), os.getcwd(), theirs)
        self._process = _CONTEXT.Process(target=_body, args=started)
        self._process.start()
        self._code: int | None = None
        for pipe in theirs:
            pipe.close()
        self.stdin = os.fdopen(_taken(stdin), "w")
        self.stdout = os.fdopen(_taken(stdout))
        self.stderr = os.fdopen(_taken(stderr))

    @property
    def returncode(self) -> int | None:
        """Minus the signal that ended it; None while it runs."""
        if self._code is None:
            self._code = self._process.exitcode
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        """As a user would."""
        if self.returncode is None:
            os.kill(self._process.pid or 0, number)

    def communicate(self) -> tuple[str, str]:
        """Both outputs, once it has ended."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        out, err = self.stdout.read(), self.stderr.read()  # what is told of a mistake is short
        self._wait()
        return out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for its end."""
        for file in (self.stdin, self.stdout, self.stderr):
            with suppress(BrokenPipeError):
                file.close()
        self._wait()
        self._process.close()

    def _wait(self) -> None:
        if self._code is None:
            self._process.join()
            self._code = self._process.exitcode


def metalearn(*words: str, env: Mapping[str, str] = os.environ) -> Process:
    """`metalearn <words>` in a process of its own."""
    return Process(COMMAND, *words, env=env)


def _taken(pipe: Connection) -> int:
    number = os.dup(pipe.fileno())
    pipe.close()
    return number


def _body(
    code: str,
    arguments: tuple[str, ...],
    env: dict[str, str],
    folder: str,
    files: tuple[Connection, Connection, Connection],
) -> None:
    for own, file in enumerate(files):
        os.dup2(file.fileno(), own)
        file.close()
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["metalearn", *arguments]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
