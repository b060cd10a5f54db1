"""The parent's side of a worker process: start it, send commands, kill it."""

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


class WorkerError(Exception):
    """A command of the worker failed; the message gives the reason in one line."""


@dataclass(frozen=True)
class Job:
    """framework: see `frameworks.parse`. allocator: "default" or "tuned"."""

    framework: str
    allocator: str = "default"

    @property
    def name(self) -> str:
        return f"{self.framework} {self.allocator}"

    @property
    def ours(self) -> bool:
        return self.framework.startswith("ours")


class Process:
    """A worker process, started at the first command and again after a failure."""

    def __init__(self, job: Job, device: str, threads: int, log: Path):
        self.job, self.log, self.process = job, log, None
        self.answer_to_hello: dict[str, Any] = {}
        self.settings = {
            "framework": job.framework,
            "allocator": job.allocator,
            "device": device,
            "threads": threads,
        }

    def _start(self) -> "subprocess.Popen[bytes]":
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.settings["device"] == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        with self.log.open("ab") as log:
            command = [sys.executable, "-W", "ignore", "-m", "metalearn.benchmarks.worker"]
            return subprocess.Popen(
                [*command, json.dumps(self.settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """The answer to a command. Raises WorkerError; after a timeout the process is killed."""
        self.hello(timeout)
        return self._ask(do, timeout, **arguments)

    def begin(self) -> None:
        """Start the process if it is not running, without waiting for it."""
        if self.process is None:
            self.process, self.answer_to_hello = self._start(), {}

    def hello(self, timeout: float) -> dict[str, Any]:
        """The worker's first answer, after it has loaded the framework. Raises WorkerError."""
        self.begin()
        if not self.answer_to_hello:
            self.answer_to_hello = self._ask("hello", timeout)
        return self.answer_to_hello

    def _ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        assert self.process and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
            line = _line(self.process.stdout, timeout)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self.close()
            raise WorkerError(f"{do} took longer than {timeout:.0f} s") from None
        if not line:
            code = self.process.wait()
            self.close()
            raise WorkerError(f"the process ended with code {code}; see {self.log.name}")
        answer = json.loads(line)
        if answer.get("error"):
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Kill the process."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.process = None


def _line(pipe: IO[bytes], timeout: float) -> bytes:
    """One line of output. Raises TimeoutError."""
    if not select.select([pipe], [], [], timeout)[0]:
        raise TimeoutError
    return pipe.readline()
