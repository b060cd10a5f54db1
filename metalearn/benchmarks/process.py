"""The parent's side of a worker process: start it, send commands, kill it."""

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
        self.job, self.log = job, log
        self.process: subprocess.Popen[bytes] | None = None
        self.answer_to_hello: dict[str, Any] = {}
        self.settings = {**asdict(job), "device": device, "threads": threads}

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """The answer to a command. Raises WorkerError; after a timeout the process is killed."""
        self.hello(timeout)
        return self._ask(do, timeout, **arguments)

    def begin(self) -> None:
        """Start the process if it is not running, without waiting for it."""
        if self.process is not None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        cpu = {"JAX_PLATFORMS": "cpu"} if self.settings["device"] == "cpu" else {}
        command = [sys.executable, "-W", "ignore", "-m", "metalearn.benchmarks.worker"]
        pipe, self.answer_to_hello = subprocess.PIPE, {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, json.dumps(self.settings)],
                stdin=pipe, stdout=pipe, stderr=log, env={**os.environ, **cpu},
            )  # fmt: skip

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
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                raise TimeoutError
            line = self.process.stdout.readline()
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
