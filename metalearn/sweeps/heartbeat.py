"""Which workers live: a file that a living one keeps changing, read without trust in clocks."""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from metalearn.runtime.files import write_atomic

BEAT = 5.0
"""Seconds between two beats."""
SILENT = 60.0
"""Seconds without a beat after which a worker on another machine counts as dead."""


def machine() -> str:
    """What two processes have in common that run under one kernel, and so see each other's locks;
    "" where that is not known."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class Worker:
    """This process among the workers of a study, from `with` to its end.

    name: of the host, the process, and a random part. asked: why it is to end, once it is: another
    wants it to, or its time is up; then SIGTERM has reached it, as from outside. In `workers/` lie
    `<name>.json`, `<name>.lock`, which its process holds, and `<name>.beat`, a count; the last two
    until it ends.

    lost: whether what it works on was taken over by another worker, which took it for dead.
    """

    def __init__(
        self, study: Path, seconds: float | None = None, lost: Callable[[], bool] = lambda: False
    ) -> None:
        self.folder = study / "workers"
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}".replace(" ", "")
        self.asked = ""
        self._seconds, self._lost, self._over = seconds, lost, threading.Event()
        self._lock = FileLock(self._path("lock"), timeout=0, fallback_to_soft=False)
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # no locks there: the beat alone tells
            self._lock.acquire()
        told = {"machine": machine() if self._lock.is_locked else "", "pid": os.getpid()}
        told |= {"host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}
        write_atomic(self._path("json"), json.dumps(told) + "\n")
        self._beat(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for kind in ("beat", "stop", "lock"):  # without a beat it has ended
            self._path(kind).unlink(missing_ok=True)
        self._lock.release()

    def _path(self, kind: str) -> Path:
        return self.folder / f"{self.name}.{kind}"

    def _beat(self, count: int) -> None:
        """In place, of one length: a full disk takes it too."""
        file = os.open(self._path("beat"), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.write(file, f"{count:020}\n".encode())
        finally:
            os.close(file)

    def _live(self) -> None:
        started, count = time.monotonic(), 0
        while True:
            left = BEAT
            if self._seconds is not None and not self.asked:
                left = min(left, max(started + self._seconds - time.monotonic(), 0.0))
            if self._over.wait(left):
                return
            count += 1
            with suppress(OSError):  # told by the run itself
                self._beat(count)
            if not self.asked:
                self.asked = self._why(time.monotonic() - started)
                if self.asked:
                    os.kill(os.getpid(), signal.SIGTERM)

    def _why(self, seconds: float) -> str:
        if self._path("stop").exists():
            return "asked to stop"
        if self._seconds is not None and seconds >= self._seconds:
            return "its minutes are over"
        return "another worker took its run over" if self._lost() else ""


class Watch:
    """Tells living workers of a study from dead ones.

    One under the same kernel lives as long as it holds its lock. Of any other nothing is known but
    its beats: it is dead where none came for `silent` seconds of this process's own clock. No time
    that another machine wrote is ever looked at, nor the date, which may jump.
    """

    def __init__(
        self, study: Path, silent: float = SILENT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.silent, self._clock = study / "workers", silent, clock
        self._machine = machine()
        self._seen: dict[str, tuple[str, float]] = {}

    def lives(self, worker: str) -> bool:
        """Whether the worker may still work."""
        if not worker:  # its name could not be read: nothing is known
            return True
        try:
            beat = (self.folder / f"{worker}.beat").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False  # it has ended
        except OSError:
            return True
        if not self.elsewhere(worker):
            return not _free(self.folder / f"{worker}.lock")
        now = self._clock()
        last, since = self._seen.get(worker, ("", now))
        if beat != last:
            self._seen[worker] = (beat, now)
            return True
        return now - since < self.silent

    def elsewhere(self, worker: str) -> bool:
        """Whether only its beats tell of the worker."""
        theirs = self.told(worker).get("machine")
        return not theirs or theirs != self._machine

    def told(self, worker: str) -> dict[str, str]:
        """What the worker said of itself: `machine`, `pid`, `host`, and `job` of Slurm's."""
        try:
            return json.loads((self.folder / f"{worker}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def _free(path: Path) -> bool:
    """Whether nobody holds the lock."""
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return False
    lock.release()
    return True


def ask_to_stop(study: Path, silent: float = SILENT) -> list[str]:
    """Ask every worker that may live to leave a checkpoint and end; their names. Workers that are
    started later are not meant."""
    watch = Watch(study, silent)
    names = sorted(path.stem for path in watch.folder.glob("*.beat"))
    alive = [name for name in names if watch.lives(name)]
    for name in alive:
        write_atomic(watch.folder / f"{name}.stop", "")
    return alive
