"""How a study stands: what is done, by whom the rest is worked on, what failed and why."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from metalearn.sweeps.claims import AGAIN, FAILED, Attempt, Claims
from metalearn.sweeps.heartbeat import Watch
from metalearn.sweeps.worker import Jobs

RUNNING, LEFT = "running", "left"
_TAIL = 8192


@dataclass(frozen=True)
class Standing:
    """state: `done`, `pruned`, `running`, `left` by a dead worker, `waiting` or `failed`. since:
    the step at which its worker took it up. step: the newest that was recorded."""

    key: str
    name: str
    state: str
    worker: str = ""
    since: int = 0
    step: int = 0
    seconds: float | None = None
    error: str = ""
    attempts: int = 0


def standings(study: Path, jobs: Jobs, watch: Watch) -> list[Standing]:
    """Of everything that is to be done, in its order."""
    claims = Claims(study)
    attempts = claims.read()
    return [_standing(key, jobs, claims, attempts.get(key, []), watch) for key in jobs.every()]


def _standing(
    key: str, jobs: Jobs, claims: Claims, attempts: Sequence[Attempt], watch: Watch
) -> Standing:
    name = jobs.name(key)
    if not attempts:
        return Standing(key, name, "waiting")
    last = attempts[-1]
    if last.state == "claimed":
        step = _newest_step(jobs.folder(key)) or last.step
        state = RUNNING if watch.lives(last.worker) else LEFT
        return Standing(key, name, state, last.worker, last.step, step, attempts=len(attempts))
    told = claims.record(key, last)
    return Standing(
        key,
        name,
        last.state,
        told.get("worker", ""),
        seconds=told.get("seconds"),
        error=told.get("error", "") if last.state == FAILED else "",
        attempts=len(attempts),
    )


def _newest_step(folder: Path | None) -> int:
    """The last step of a run's records, from the end of their file."""
    if folder is None:
        return 0
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def table(found: Sequence[Standing], watch: Watch) -> Table:
    """What runs, failed or was left, a row each, below the counts and the time that is left."""
    shown = Table("run", "state", "what", "worker", "told", box=None, pad_edge=False)
    shown.title, shown.title_justify, shown.title_style = summary(found), "left", ""
    for one in found:
        if one.state in (RUNNING, LEFT):
            told = watch.told(one.worker)
            job = f" job {told['job']}" if told.get("job") else ""
            who = f"{told.get('host', one.worker)} {told.get('pid', '')}{job}"
            since = f"step {one.step}, taken up at {one.since}"
            shown.add_row(one.key, one.state, one.name, who, since)
        elif one.state == FAILED:
            shown.add_row(one.key, one.state, one.name, "", one.error)
    return shown


def summary(found: Sequence[Standing]) -> str:
    """The counts of all states, and the time left."""
    states = [one.state for one in found]
    order = ("done", "pruned", RUNNING, LEFT, "waiting", FAILED)
    counts = [f"{states.count(s)} {s}" for s in order if s in states or s in ("done", "waiting")]
    line = f"{len(found)} runs: {', '.join(counts)}"
    left = time_left(found)
    return line if left is None else f"{line}; about {_duration(left)} left"


def time_left(found: Sequence[Standing]) -> float | None:
    """Seconds, if the rest takes as long as what is done did on average, on the workers that run
    now; None where nothing is done or nothing runs, or nothing is left."""
    took = [one.seconds for one in found if one.state in ("done", "pruned") and one.seconds]
    running = sum(one.state == RUNNING for one in found)
    rest = running / 2 + sum(one.state in (LEFT, "waiting") for one in found)
    if not (took and running):
        return None
    return rest * sum(took) / len(took) / running


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def retry(study: Path, jobs: Jobs) -> list[str]:
    """Let every failed run wait again; their keys."""
    claims = Claims(study)
    attempts = claims.read()
    again = [k for k in jobs.every() if k in attempts and attempts[k][-1].state == FAILED]
    for key in again:
        jobs.retried(key)
        claims.end(key, attempts[key][-1].number, AGAIN, {})
    return again
