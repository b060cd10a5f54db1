"""`metalearn sweep submit`: workers of a study as an array of Slurm jobs, or beside this shell."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metalearn.errors import UsageError
from metalearn.sweeps.worker import work

EXECUTORS = ("slurm", "local")
_REQUEUED = 1000
"""How often a job may reach its time limit and be queued again."""
_WARNING = 90
"""Seconds before the time limit at which a job leaves its checkpoint."""


@dataclass(frozen=True)
class SlurmWorker:
    """What a job runs. Preempted, it leaves a checkpoint, and Slurm queues it again; at its time
    limit it asks for that itself. The same job then goes on, with whatever run is open."""

    study: Path
    cpus: int

    def __call__(self) -> None:
        from metalearn.commands.sweep import jobs_of

        # submitit's own handler queues the job again at once, in the middle of a step.
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        warned: list[int] = []

        def warn(number: int, _: Any) -> None:
            warned.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, warn)
        torch.set_num_threads(self.cpus)
        try:
            work(self.study, jobs_of(self.study), Console(emoji=False))
        except SystemExit:
            if warned and callable(requeue):
                requeue(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> Any:
        """For submitit: what runs when the job starts again. Everything lies in the study."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    study: Path,
    workers: int,
    executor: str,
    console: Console,
    minutes: int | None = None,
    cpus: int = 1,
    slurm: dict[str, str] | None = None,
) -> None:
    """Start `workers` workers and leave them. minutes: the time limit of a job, after which it is
    queued again; None for a day. slurm: further options of sbatch.

    Raises UsageError where there is no Slurm, or it refuses.
    """
    logs = study.absolute() / "logs"
    logs.mkdir(exist_ok=True)
    if executor == "local":
        _beside(study, workers, minutes, cpus, logs, console)
        return
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        made = SlurmExecutor(logs, max_num_timeout=_REQUEUED)
    except RuntimeError:
        raise UsageError(
            "executor=slurm needs Slurm, and there is no srun here; use executor=local"
        ) from None
    made.update_parameters(
        job_name=study.absolute().name,
        time=minutes or 24 * 60,
        cpus_per_task=cpus,
        signal_delay_s=_WARNING if minutes is None or minutes > 5 else 30,
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, **(slurm or {})},
    )
    one = SlurmWorker(study.absolute(), cpus)
    try:
        with contextlib.redirect_stderr(io.StringIO()), made.batch():
            jobs = [made.submit(one) for _ in range(workers)]
    except (FailedJobError, FailedSubmissionError) as error:
        told = [line for line in str(error).splitlines() if "error:" in line] or [str(error)]
        reason = told[-1].rpartition("error:")[2]
        raise UsageError(f"Slurm refused: {' '.join(reason.split())}") from None
    number = jobs[0].job_id.partition("_")[0]
    told = f"Slurm job {number}: {workers} workers, which write to {os.path.relpath(logs)}"
    console.print(f"{told}; metalearn sweep status {study}", soft_wrap=True, highlight=False)


def _beside(
    study: Path, workers: int, minutes: int | None, cpus: int, logs: Path, console: Console
) -> None:
    """Processes of this machine that outlive this one and its terminal."""
    command = [sys.executable, "-m", "metalearn.cli", "sweep", "work", str(study)]
    command += [f"minutes={minutes}"] if minutes else []
    started = []
    for _ in range(workers):
        number = len(list(logs.glob("worker-*.log")))
        with (logs / f"worker-{number}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": str(cpus)},
                    start_new_session=True,
                )
            )
    pids = ", ".join(str(process.pid) for process in started)
    told = f"{workers} workers (processes {pids}), which write to {os.path.relpath(logs)}"
    console.print(f"{told}; metalearn sweep status {study}", soft_wrap=True, highlight=False)
