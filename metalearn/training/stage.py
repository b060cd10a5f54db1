"""What the run shell asks of one kind of training, and what both know of where it stands."""

import functools
import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metalearn.backbones.weights import Report
from metalearn.engine.ranks import Ranks
from metalearn.errors import UsageError
from metalearn.functional.precision import slowdown
from metalearn.runtime.files import write_atomic
from metalearn.tracking import Tracker
from metalearn.training.checkpoint import latest_checkpoint, restore_generators

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.monotonic,
    "processor": time.process_time,
}
"""What counts the seconds of a run: the time that passes, or the processor time of this process,
all its threads together, which other programs on the machine do not use up."""


@dataclass(frozen=True)
class Pace:
    """When the shell validates, saves, records and stops; in steps, `seconds` in seconds.

    seconds: of training by `clock`, validation included; None for no limit. patience: validations
    without a new best. keep: newest checkpoints that are kept, beside the best. workers: threads
    that make the coming batches; None for 1 beside a GPU and 0 on a CPU.
    """

    steps: int
    validate_every: int
    checkpoint_every: int
    record_every: int = 1
    keep: int = 2
    seconds: float | None = None
    clock: str = "wall"
    patience: int | None = None
    workers: int | None = None


@dataclass
class Position:
    """Where a run stands: `step` steps are done, and the weights of `best_step` are selected.

    seconds: of training so far, by the clock of its pace. commit: of the code that began the run.
    threads: that torch computes with, on so many ranks. config_hash, seed: whose checkpoint it is.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    wandb_id: str | None = None
    commit: str | None = None
    threads: int | None = None
    ranks: int = 1
    config_hash: str | None = None
    seed: int | None = None

    def dump(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned."""
        for part in fields(self):
            kept = part.name not in _LATER or saved.get(part.name) is not None
            if kept:
                setattr(self, part.name, saved[part.name])


_LATER = ("threads", "ranks", "config_hash", "seed")  # what earlier versions did not keep


class Validation(NamedTuple):
    """score: what selection maximises; NaN for none. record: more scalars of this step.

    last: the newest weights are selected, whatever the scores.
    """

    score: float
    record: Mapping[str, float] = {}
    last: bool = False


class Stage(Protocol):
    """One kind of training: what it learns, and how.

    unit, size: what a step trains on and how many of them, as in 16 "tasks".
    ranks: that share each step; None for this process alone, and so where a stage has no such name.
        All call the same methods in the same order, and each ends every step with the same state.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def unit(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def pace(self) -> Pace: ...
    @property
    def ranks(self) -> Ranks | None: ...

    def begin(self, folder: Path, console: Console) -> None:
        """What is to be chosen or told before the first step of this process. With ranks the first
        one alone writes to `folder`, here and in `finish`."""
        ...

    def batches(self, steps: range, workers: int) -> Generator[Any, None, None]:
        """The batches of `steps`, counted from 0, made ahead by so many threads; of each what this
        rank computes."""
        ...

    def step(self, number: int, batch: Any, tracker: Tracker) -> Mapping[str, Tensor | float]:
        """Step `number`, counted from 1; returns its scalars, which may still be on the device."""
        ...

    def check(self, values: Mapping[str, float], number: int) -> None:
        """Raise UsageError where the scalars of a step say that the run is lost."""
        ...

    def validate(self, number: int, tracker: Tracker) -> Validation:
        """Measure the weights after step `number`."""
        ...

    def select(self) -> None:
        """Keep a copy of the weights as they are now: the best so far."""
        ...

    def dump(self) -> dict[str, Any]:
        """Everything that changes during training, tensors and plain values mixed."""
        ...

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `dump` returned. Raises KeyError where something is missing."""
        ...

    def finish(
        self, config: Mapping[str, Any], position: Position, folder: Path, tracker: Tracker
    ) -> dict[str, Any]:
        """Test the selected weights, and write all that the run leaves behind; the result, empty on
        a rank that does not write."""
        ...

    def table(self, result: Mapping[str, Any]) -> Table:
        """A result for people."""
        ...


def ranks_of(stage: Stage) -> Ranks:
    """Those that share its steps; this process alone where there are none."""
    return getattr(stage, "ranks", None) or Ranks()


def resume(stage: Stage, position: Position, folder: Path, warn: Callable[[str], None]) -> bool:
    """Load the newest readable checkpoint under `folder`, as the first rank finds it; False where
    there is none.

    Raises UsageError for a checkpoint of another run or stage, or of a version that kept other
    things.
    """
    ranks = ranks_of(stage)
    saved = ranks.told(lambda: latest_checkpoint(folder / "checkpoints", warn))
    if saved is None:
        return False
    theirs, ours = saved.get("config_hash"), position.config_hash
    if theirs and ours and theirs != ours:
        raise UsageError(
            f"the checkpoints in {folder} are another run's (seed {saved.get('seed')}, config "
            f"{theirs[:8]}; {folder.name} is of seed {position.seed}, config {ours[:8]}); move "
            "them away, or use resume=never"
        )
    try:
        position.load(saved)
        stage.load(saved)
        restore_generators(saved["generators"])
    except KeyError as error:
        raise UsageError(
            f"the checkpoints in {folder} hold no {error}: they are of another version; "
            "use resume=never"
        ) from None
    return True


_EMULATED = 2.0  # times float32


NAMES = "weight_names.json"
"""In a run folder: the name in the network, the name in the file, where these are others."""


def teller(console: Console) -> Callable[[str], None]:
    """What prints a line as it is, however long."""
    return functools.partial(console.print, soft_wrap=True, highlight=False, markup=False)


def warn_of_emulation(precision: str, device: torch.device, say: Callable[[str], None]) -> None:
    """Say so where the device computes in `precision` more slowly than in float32."""
    if (times := slowdown(precision, device)) > _EMULATED:
        much = f"{times:.0f} times as long for it as for fp32"
        say(f"precision={precision}: this processor takes {much}")


def tell(report: Report | None, folder: Path, say: Callable[[str], None]) -> None:
    """Say what became of the weights that a run starts from, None for a random start, and keep the
    names that were matched by order."""
    if report is not None:
        say(str(report))
        if report.names:
            write_atomic(folder / NAMES, json.dumps(report.names, indent=1))


def trained(stage: Stage, position: Position) -> dict[str, Any]:
    """What the result of any training tells of it."""
    return {
        "steps": position.step,
        "selected_step": position.best_step,
        "validation_score": position.best_score,
        "seconds": position.seconds,
        "clock": stage.pace.clock,
        f"{stage.unit}_per_second": position.step * stage.size / position.seconds,
        "commit": position.commit,
        **({"ranks": position.ranks} if position.ranks > 1 else {}),
    }
