"""One run on several ranks: they begin alike, end alike, and the first alone writes and speaks.

Every rank builds the same stage and holds the same weights, moments and place in the run, so a
checkpoint holds nothing of ranks, any rank could write it, and any number of ranks goes on from it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.engine.ranks import Ranks
from metalearn.errors import RankLost, UsageError, one_line
from metalearn.runtime.signals import handle_ending
from metalearn.training.checkpoint import digest_of, generator_states, save_checkpoint
from metalearn.training.folder import held, lock_of
from metalearn.training.stage import CLOCKS, Pace, Position, Stage, ranks_of

_WAIT = 2.0  # seconds, for the lock of a first rank that is just ending


@contextmanager
def as_one(ranks: Ranks) -> Iterator[None]:
    """Around a run: a signal is noted, for all to stop at one step, and where a rank fails for a
    reason of its own, the first one tells it.

    torchrun ends what is left by SIGTERM, and so the signals stay noted to the end of the process.
    """
    if ranks.size == 1:
        yield
        return
    handle_ending(ranks.ending)
    try:
        yield
    except RankLost:
        if ranks.first and (word := ranks.word()):
            raise UsageError(word) from None
        raise
    except Exception as error:
        if not ranks.first and (line := one_line(error)):
            ranks.leave_word(line)
        raise
    ranks.leave()


def check_start(ranks: Ranks, stage: Stage) -> None:
    """Raise UsageError where a rank would start from other weights than the first, or would not
    share its steps."""
    if ranks.size == 1:
        return
    if ranks_of(stage).size != ranks.size:
        raise UsageError(f"{type(stage).__name__} is for one process; start it without torchrun")
    digests = ranks.gathered(digest_of(stage.dump()))
    if len(set(digests)) > 1:
        other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise UsageError(
            f"rank {other} starts from other weights than rank 0: something draws them that seed "
            "does not reach, or its files differ; seed what draws, or give every machine the same"
        )


@contextmanager
def losing(
    ranks: Ranks,
    stage: Stage,
    at: Position,
    folder: Path,
    generators: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Where a rank is lost inside, leave a checkpoint of step `at.step`, if that is whole and there
    is none, and one line: by the first rank, or by another where that is gone.

    generators: as they were after that step; None where what is inside would break it.
    """
    try:
        yield
    except RankLost as lost:
        whole = None if lost.midway else generators
        raise _after_a_loss(lost, ranks, stage, at, folder, whole) from None


def _after_a_loss(
    lost: RankLost,
    ranks: Ranks,
    stage: Stage,
    at: Position,
    folder: Path,
    generators: Mapping[str, Tensor] | None,
) -> RankLost:
    lock = None
    if not ranks.first:
        try:
            lock = lock_of(folder, _WAIT) if folder.is_dir() else None
        except OSError:  # no folder of this machine's
            lock = None
        if lock is None:
            return lost
    try:
        checkpoints, step, steps = folder / "checkpoints", at.step, stage.pace.steps
        if generators is not None and step and not (checkpoints / f"step-{step:08d}").exists():
            state = {**at.dump(), **stage.dump(), "generators": generators}
            save_checkpoint(checkpoints, step, state)
        saved = sorted(checkpoints.glob("step-*"))
    finally:
        if lock is not None:
            lock.release()
    where = f"goes on from step {int(saved[-1].name[5:])}" if saved else "starts again"
    line = f"a rank ended, or no longer answers, after step {step} of {steps} ({lost.reason})"
    told = RankLost(f"{line}; the same command {where}, with any number of ranks", lost.reason)
    told.speaks = ranks.speaks_first()
    return told


@contextmanager
def held_by_first(ranks: Ranks, folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """`held` by the first rank, for all."""
    with held(folder, config, config["resume"]) if ranks.first else nullcontext(folder) as place:
        yield ranks.told(lambda: place)


def seconds_since(start: float, pace: Pace, ranks: Ranks) -> float:
    """Of training so far; by the first rank's clock where that may end it."""
    seconds = CLOCKS[pace.clock]() - start
    return seconds if pace.seconds is None else ranks.told(lambda: seconds)


def shared_generators(ranks: Ranks) -> dict[str, Tensor]:
    """What a checkpoint keeps of torch's generators: of several ranks that which all have alike."""
    states = generator_states()
    return states if ranks.size == 1 else {"cpu": states["cpu"]}


def other_ranks(before: int, now: int) -> str:
    """The line for a run that goes on with another number of ranks."""
    was, goes = ("one process" if n == 1 else f"{n} ranks" for n in (before, now))
    return (
        f"this run went on with {was}, and goes on with {goes}: sums round otherwise, and its "
        "weights will differ in the last digits"
    )
