"""The plan of a study: one line a run, and where each lies."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from metalearn.errors import UsageError
from metalearn.runtime.files import write_atomic
from metalearn.training.folder import config_hash
from metalearn.training.old_configs import renewed

PLAN, SEARCH = "plan.jsonl", "search.json"


@dataclass(frozen=True)
class PlannedRun:
    """key: the first 16 digits of the hash of `config`, the whole configuration of the run.
    folder: inside the study. overrides: what it was composed from, for people."""

    key: str
    command: str
    folder: str
    overrides: list[str]
    config: dict[str, Any]


def planned(command: str, overrides: Sequence[str], config: dict[str, Any]) -> PlannedRun:
    """A run of `metalearn <command>`; its folder is named as it would be without a study."""
    name = Path(config["run_dir"]).name
    own = {**config, "run_dir": None}
    return PlannedRun(_key(own), command, f"runs/{name}", list(overrides), own)


def _key(config: dict[str, Any]) -> str:
    return config_hash(config)[:16]


def read_plan(study: Path) -> list[PlannedRun]:
    """The runs of a study in their order; none where it is a search.

    Raises UsageError where there is no study, or its plan is damaged.
    """
    path = study / PLAN
    if not path.is_file():
        if (study / SEARCH).is_file():
            return []
        raise UsageError(
            f"{study} holds no study ({PLAN} is not there); make one: metalearn sweep plan "
            f"study.yaml {study}"
        )
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = PlannedRun(**json.loads(line))
            if _key(run.config) != run.key:
                raise ValueError("its key is not that of its configuration")
            folder = Path(run.folder)
            if folder.is_absolute() or ".." in folder.parts:
                raise ValueError("its folder is outside of the study")
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: line {number} is damaged ({error}); remove it, and plan the study again"
            ) from None
        runs.append(run)
    return runs


def extend_plan(study: Path, runs: Sequence[PlannedRun]) -> int:
    """Add the runs that are not there yet, and keep those that are; the number of new ones."""
    there = read_plan(study) if (study / PLAN).exists() else []
    known = {_key(renewed(run.config)) for run in there}  # a plan of an older version
    new = list({run.key: run for run in runs if run.key not in known}.values())
    if new or not there:
        lines = [json.dumps(asdict(run)) for run in (*there, *new)]
        write_atomic(study / PLAN, "".join(f"{line}\n" for line in lines))
    return len(new)


Perform = Callable[[dict[str, Any], Console], float | None]


class PlanJobs:
    """The runs of a plan, which may grow while they are worked on.

    performers: for each command what runs a configuration. check: raises UsageError where a
    configuration can no longer be run as it was planned.
    """

    def __init__(
        self,
        study: Path,
        performers: dict[str, Perform],
        check: Callable[[dict[str, Any]], None] = lambda config: None,
    ) -> None:
        self._study, self._performers, self._check = study, performers, check
        self._runs: dict[str, PlannedRun] = {}
        self._shared: set[str] = set()
        self._stamp: tuple[int, int] | None = None

    def every(self) -> Sequence[str]:
        found = os.stat(self._study / PLAN)
        if (stamp := (found.st_mtime_ns, found.st_size)) != self._stamp:
            self._runs = {run.key: run for run in read_plan(self._study)}
            self._stamp = stamp
            words = [set(run.overrides) for run in self._runs.values()]
            self._shared = set.intersection(*words) if words[1:] else set()
        return list(self._runs)

    def name(self, key: str) -> str:
        """The overrides that not every run has."""
        return " ".join(o for o in self._runs[key].overrides if o not in self._shared)

    def folder(self, key: str) -> Path | None:
        return self._study / self._runs[key].folder

    def run(self, key: str, console: Console) -> dict[str, Any]:
        planned = self._runs[key]
        config = {**renewed(planned.config), "run_dir": str(self._study / planned.folder)}
        self._check(config)
        return {"score": self._performers[planned.command](config, console)}

    def given_up(self, key: str, why: str) -> None:
        """The claims say it."""

    def retried(self, key: str) -> None:
        """The claims say it."""

    def again(self, error: BaseException, failures: int) -> bool:
        """`metalearn sweep retry` says so."""
        return False
