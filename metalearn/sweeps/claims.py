"""Who has which run: claims that stay true for any number of workers on a shared folder."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metalearn.runtime.files import write_atomic

DONE, FAILED, STOPPED, PRUNED, AGAIN = "done", "failed", "stopped", "pruned", "again"
LIVES = 3
"""Workers that may die of a run, one after the other, before it counts as failed."""


@dataclass
class Attempt:
    """One worker's work on a run. step: of the run's newest checkpoint at its start. ends: how it
    ended; empty while it goes on, and for good where the worker died."""

    number: int
    worker: str = ""
    step: int = 0
    ends: set[str] = field(default_factory=set)

    @property
    def state(self) -> str:
        """`done`, `pruned`, `failed`, `waiting`, or `claimed` where it has not ended."""
        for end in (DONE, PRUNED):
            if end in self.ends:
                return end
        if {AGAIN, STOPPED} & self.ends:
            return "waiting"
        return FAILED if FAILED in self.ends else "claimed"


class Claims:
    """The folder `claims/` of a study: for each run its attempts, numbered from 1.

    An attempt is a symbolic link `<key>.<number>` to the name of its worker. Making a link either
    succeeds or finds one there, on local disks and on every NFS, and the name comes with it: so of
    any number of workers one has the next number, and no lock is held that a killed worker would
    leave behind. A run of a dead worker is taken up by the next number; nothing is ever removed,
    so no slow worker can take away a claim that came after its own. (A lock of the system's, as
    `filelock` takes, ends with its process, but some shared folders have none, or one for each
    machine; a lock file must be broken when its owner dies, and two may break it at once.)
    How an attempt ended is a file beside it, `<key>.<number>.<end>`: one listing of the folder
    tells of every run.
    """

    def __init__(self, study: Path) -> None:
        self.folder = study / "claims"
        self._owners: dict[str, str] = {}  # a link stays as it is

    def read(self) -> dict[str, list[Attempt]]:
        """The attempts of every run that has any, oldest first."""
        found: dict[str, dict[int, Attempt]] = {}
        links = set()
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):
                key, _, rest = name.partition(".")
                number, _, end = rest.partition(".")
                if not key or not number.isdigit() or end.endswith(".part"):
                    continue  # a file that is being written
                attempt = found.setdefault(key, {}).setdefault(int(number), Attempt(int(number)))
                if end:
                    attempt.ends.add(end)
                else:
                    links.add((key, int(number)))
        for key, number in links:
            attempt = found[key][number]
            attempt.worker, _, step = self._owner(key, number).partition(" ")
            attempt.step = int(step) if step.isdigit() else 0
        return {key: [own[n] for n in sorted(own)] for key, own in found.items()}

    def claim(self, key: str, number: int, worker: str, step: int = 0) -> bool:
        """Whether `worker` has attempt `number` of the run, and nobody else.

        Raises OSError where the folder cannot be written, or has no symbolic links.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{worker} {step}"
        try:
            os.symlink(name, self.folder / f"{key}.{number}")
        except FileExistsError:
            # A network repeats what was not answered in time: then it is this worker's own.
            return self._owner(key, number) == name
        return True

    def taken_over(self, key: str, number: int) -> bool:
        """Whether a later attempt than `number` has begun: this one counts no more."""
        return os.path.lexists(self.folder / f"{key}.{number + 1}")

    def end(self, key: str, number: int, how: str, record: Mapping[str, Any]) -> None:
        """Write down how an attempt ended."""
        write_atomic(self.folder / f"{key}.{number}.{how}", json.dumps(record) + "\n")

    def record(self, key: str, attempt: Attempt) -> dict[str, Any]:
        """What was written at the end of an attempt; empty where it has not ended."""
        for how in (DONE, PRUNED, FAILED, STOPPED):
            if how in attempt.ends:
                with contextlib.suppress(OSError, ValueError):
                    path = self.folder / f"{key}.{attempt.number}.{how}"
                    return json.loads(path.read_text(encoding="utf-8"))
        return {}

    def _owner(self, key: str, number: int) -> str:
        """What the link says; "" where it cannot be read."""
        name = f"{key}.{number}"
        if name not in self._owners:
            with contextlib.suppress(OSError):
                self._owners[name] = os.readlink(self.folder / name)
        return self._owners.get(name, "")


def hopeless(attempts: list[Attempt]) -> bool:
    """Whether the last `LIVES` attempts all died at the same step: the run may be what kills."""
    last = attempts[-LIVES:]
    died = all(not attempt.ends for attempt in last)
    return len(last) == LIVES and died and len({attempt.step for attempt in last}) == 1
