"""The parent's end of a worker: start it, ask it, give it up."""

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


class Failed(Exception):
    """The worker could not do what it was asked; the message says why, in one line."""


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
    """A worker process, started when first asked and again after a failure."""

    def __init__(self, job: Job, device: str, threads: int, log: Path):
        self.job, self.log, self.process = job, log, None
        self.told: dict[str, Any] = {}
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
        """The answer. Raises Failed; after a timeout or a death the process is gone."""
        self.hello(timeout)
        return self._ask(do, timeout, **arguments)

    def begin(self) -> None:
        """Start the process where there is none, without waiting for it."""
        if self.process is None:
            self.process, self.told = self._start(), {}

    def hello(self, timeout: float) -> dict[str, Any]:
        """What the framework said when it was loaded, starting it if need be. Raises Failed."""
        self.begin()
        if not self.told:
            self.told = self._ask("hello", timeout)
        return self.told

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
            raise Failed(f"{do} took longer than {timeout:.0f} s") from None
        if not line:
            code = self.process.wait()
            self.close()
            raise Failed(f"the process ended with code {code}; see {self.log.name}")
        answer = json.loads(line)
        if answer.get("error"):
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
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
    """One line; answers are whole lines, flushed. Raises TimeoutError."""
    if not select.select([pipe], [], [], timeout)[0]:
        raise TimeoutError
    return pipe.readline()
