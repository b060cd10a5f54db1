"""The runs of a table: their configurations, which are there, what the others would take."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.commands.building.config import compose
from metalearn.errors import UsageError
from metalearn.sweeps.ledger import Cell, Ledger
from metalearn.sweeps.records import complaints, rates, record, same_pace
from metalearn.sweeps.runs import FinishedRun
from metalearn.tracking import read_records


class Rate(NamedTuple):
    """Tasks a second in training, and the run that has recorded it."""

    value: float
    source: Path


@dataclass(frozen=True)
class Job:
    """One seed of one cell. place: of its record. pretraining: the configuration of a run that it
    starts from. complaints: what its record does not keep of its word. done: meta-steps that were
    taken before, by the folder of a run that has not finished."""

    cell: Cell
    seed: int
    config: dict[str, Any]
    pretraining: dict[str, Any] | None
    place: Path
    record: FinishedRun | None
    rate: Rate | None
    complaints: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called on the terminal."""
        return f"{self.cell.name} seed {self.seed}"

    @property
    def run_dir(self) -> str:
        """The folder that it trains in."""
        return self.config["run_dir"]

    @property
    def done(self) -> int:
        """Meta-steps up to the newest checkpoint."""
        saved = Path(self.run_dir).glob("checkpoints/step-*")
        return max((int(path.name.removeprefix("step-")) for path in saved), default=0)

    @property
    def tasks(self) -> int:
        """That are left to train on."""
        training = self.config["training"]
        return max(training["steps"] - self.done, 0) * training["meta_batch"]

    @property
    def hours(self) -> float | None:
        """Of training that are left, from the tasks and a recorded rate; None where no run of the
        same work is recorded."""
        if self.rate is None or self.pretraining is not None:
            return None
        return self.tasks / self.rate.value / 3600

    @property
    def work(self) -> float:
        """Images through the network that are left, as inner steps pass them again; to sort by."""
        training, episodes = self.config["training"], self.config["episodes"]
        ways = training["ways"] or episodes["ways"]
        shots = training["shots"] or episodes["shots"]
        queries = training["queries"] or episodes["queries"]
        passes = self.config["algorithm"].get("steps", 0) + 1
        return self.tasks * ways * (shots * passes + queries)


def jobs(
    ledger: Ledger, cells: Sequence[Cell], seeds: Sequence[int], out: Path, shared: Sequence[str]
) -> list[Job]:
    """Every seed of every cell. Raises UsageError for overrides that cannot be composed, and for a
    record that cannot be read."""
    measured = rates(out)
    return [_job(ledger, cell, seed, out, shared, measured) for cell in cells for seed in seeds]


def _job(
    ledger: Ledger, cell: Cell, seed: int, out: Path, shared: Sequence[str], measured: list[Any]
) -> Job:
    base = [*shared, f"name={ledger.name}_{cell.name}", f"seed={seed}"]
    pretraining, starts = None, list[str]()
    try:
        if cell.pretrain is not None:
            own = [*shared, f"name={ledger.name}_{cell.name}_pretrain", f"seed={seed}"]
            pretraining = compose([*cell.pretrain, *own], "pretrain")
            starts = [f"backbone.weights={pretraining['run_dir']}"]
        config = compose([*cell.run, *starts, *base])
    except UsageError as error:
        raise UsageError(f"table {ledger.name}, cell {cell.name}: {error}") from None
    place = out / ledger.name / cell.name / f"seed{seed}"
    held = record(place)
    wrong = [] if held is None else list(complaints(held, seed, config))
    rate = _own_rate(Path(config["run_dir"])) or _rate(config, measured)
    return Job(cell, seed, config, pretraining, place, held, rate, wrong)


def _own_rate(run: Path) -> Rate | None:
    """The median of what a run that has begun has recorded."""
    path = run / "metrics.jsonl"
    try:
        records = list(read_records(path)) if path.is_file() else []
    except ValueError:  # damaged, as the run tells when it goes on
        return None
    told = [one["tasks_per_second"] for one in records if "tasks_per_second" in one]
    return Rate(statistics.median(told), run) if told else None


def _rate(config: dict[str, Any], measured: list[Any]) -> Rate | None:
    """The least of those that are recorded for the same work."""
    found = [Rate(rate, source) for held, rate, source in measured if same_pace(held, config)]
    return min(found, default=None)


def shown_time(job: Job) -> str:
    """What one run would take."""
    if job.hours is None:
        return "not known"
    return f"{job.hours:.1f} h" if job.hours >= 0.1 else f"{60 * job.hours:.1f} min"


def told_of(job: Job) -> Iterator[str]:
    """Lines on a run that is not there: what its time rests on, and how far it has come."""
    if job.record is not None:
        return
    if job.rate is not None and job.pretraining is None:
        told = f"at {job.rate.value:.1f} tasks/s as in {job.rate.source}, validation as there"
        yield f"{job.cell.name}: {job.tasks} tasks left {told}"
    if job.done:
        yield f"{job.name} has begun: {job.done} of {job.config['training']['steps']} meta-steps"
