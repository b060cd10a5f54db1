"""The outer loop: meta-steps, validation and selection by it, checkpoints, a clean stop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metalearn import tree
from metalearn.engine.strategy import Batching, MetaGradient
from metalearn.episodes import EpisodeSource, Manifest
from metalearn.episodes.prefetch import prefetched
from metalearn.errors import UsageError
from metalearn.evaluation.protocol import evaluate
from metalearn.inner.protocol import MetaAlgorithm
from metalearn.runtime.memory import peak_memory_bytes
from metalearn.tracking import Tracker
from metalearn.training.checkpoint import (
    generator_states,
    latest_checkpoint,
    prune_checkpoints,
    restore_generators,
    save_checkpoint,
)
from metalearn.training.outer import Outer, meta_step
from metalearn.training.settings import TrainingSettings
from metalearn.types import Episodes, Meta


@dataclass(frozen=True)
class Problem:
    """What is trained on what.

    train: endless training episodes. validation: the manifest that selects. evaluation_steps:
    inner steps in evaluation, None for the algorithm's own.
    """

    algo: MetaAlgorithm
    gradient: MetaGradient
    train: EpisodeSource
    validation: Manifest
    device: torch.device
    batching: Batching = "auto"
    evaluation_steps: int | None = None


@dataclass
class TrainState:
    """Where training stands; `dump` and `load` are its form in a checkpoint.

    step: meta-steps done, and so the episode cursor: meta-step s draws the episodes
    [s * meta_batch, (s + 1) * meta_batch). best: the weights selected so far.
    """

    meta: Meta
    outer: Outer
    best: Meta
    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    seconds: float = 0.0
    wandb_id: str | None = None
    commit: str | None = None

    def dump(self) -> dict[str, Any]:
        """Everything that changes during training."""
        numbers = ("step", "best_step", "best_score", "seconds", "wandb_id", "commit")
        return {
            **{name: getattr(self, name) for name in numbers},
            "meta": self.meta,
            "best": self.best,
            "outer": self.outer.state(),
            "generators": generator_states(),
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `dump` returned."""
        for name in ("step", "best_step", "best_score", "seconds", "wandb_id", "commit"):
            setattr(self, name, state[name])
        with torch.no_grad():
            for part in ("init", "hyper"):
                for name, weight in self.meta[part].items():
                    weight.copy_(state["meta"][part][name])
        self.meta["buffers"] = tree.map(lambda t: t.to(device), state["meta"]["buffers"])
        self.best = tree.map_meta(lambda t: t.to(device), state["best"])
        self.outer.load(state["outer"])
        restore_generators(state["generators"])


@contextmanager
def at_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Do `act` at SIGTERM instead of dying; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resume(
    state: TrainState, folder: Path, device: torch.device, warn: Callable[[str], None]
) -> bool:
    """Load the newest readable checkpoint under `folder`; False where there is none."""
    saved = latest_checkpoint(folder / "checkpoints", warn)
    if saved is not None:
        state.load(saved, device)
    return saved is not None


def fit(
    problem: Problem, settings: TrainingSettings, state: TrainState, folder: Path, tracker: Tracker
) -> bool:
    """Train until `settings.steps` or `settings.seconds`, an early stop, or SIGTERM; `state` is
    updated in place.

    Checkpoints go to `folder/checkpoints`. Returns False where SIGTERM ended it early.
    """
    checkpoints = folder / "checkpoints"
    clock = time.monotonic() - state.seconds

    def save() -> None:
        save_checkpoint(checkpoints, state.step, state.dump())
        prune_checkpoints(checkpoints, settings.keep, also=state.best_step)

    stop = threading.Event()
    with at_sigterm(stop.set), closing(_coming(problem, settings, state.step)) as coming:
        while not _over(state, settings):
            _train_step(problem, settings, state, tracker, coming)
            # Once a step: what `last` says, and what a checkpoint of this step keeps, agree.
            state.seconds = time.monotonic() - clock
            last = state.step == settings.steps or _out_of_time(state, settings)
            if state.step % settings.validate_every == 0 or last:
                _validate(problem, state, tracker)
                state.seconds = time.monotonic() - clock
                save()
            elif state.step % settings.checkpoint_every == 0 or stop.is_set():
                save()
            if stop.is_set() and not last:
                return False
        state.seconds = time.monotonic() - clock
    return True


def _coming(
    problem: Problem, settings: TrainingSettings, step: int
) -> Generator[Episodes, None, None]:
    """The meta-batches of `step` and all later ones, made ahead by the workers."""
    size = settings.meta_batch
    starts = range(step * size, settings.steps * size, size)
    workers = settings.workers
    if workers is None:
        workers = 1 if problem.device.type == "cuda" else 0
    return prefetched(
        lambda start: problem.train.batch("train", range(start, start + size)),
        starts,
        workers,
    )


def _over(state: TrainState, settings: TrainingSettings) -> bool:
    done = state.step >= settings.steps or _out_of_time(state, settings)
    return done or _out_of_patience(state, settings)


def _out_of_time(state: TrainState, settings: TrainingSettings) -> bool:
    """Whether the seconds are used up; a first step is always taken."""
    return settings.seconds is not None and state.step > 0 and state.seconds >= settings.seconds


def _out_of_patience(state: TrainState, settings: TrainingSettings) -> bool:
    if settings.patience is None:
        return False
    return state.step - state.best_step >= settings.patience * settings.validate_every


_OVERFLOWS = 20  # steps in a row that float16 may skip before a run is taken for lost


def _train_step(
    problem: Problem,
    settings: TrainingSettings,
    state: TrainState,
    tracker: Tracker,
    coming: Iterator[Episodes],
) -> None:
    started = time.perf_counter()
    first = state.step * settings.meta_batch
    indices = range(first, first + settings.meta_batch)
    episodes = next(coming).map(lambda t: t.to(problem.device))
    rate = state.outer.learning_rate
    metrics = meta_step(problem.algo, problem.gradient, state.outer, state.meta, episodes)
    state.step += 1
    norm = float(metrics.pop("grad_norm"))
    values: dict[str, list[float]] = {name: value.tolist() for name, value in metrics.items()}
    if not math.isfinite(norm) and not 0 < state.outer.skipped < _OVERFLOWS:
        raise UsageError(
            f"the meta-gradient is not finite at step {state.step}; lower inner.rate or "
            "outer.optimizer.lr, or set training.clip_norm (earlier checkpoints are kept)"
        )
    tracker.episodes(state.step, "train", {"index": list(indices), **values})
    tracker.scalars(
        state.step,
        {
            **{name: sum(value) / len(value) for name, value in values.items()},
            "grad_norm": norm,
            "learning_rate": rate,
            "tasks_per_second": settings.meta_batch / (time.perf_counter() - started),
            "peak_memory_bytes": peak_memory_bytes(problem.device),
        },
    )


def _validate(problem: Problem, state: TrainState, tracker: Tracker) -> None:
    steps = problem.algo.steps if problem.evaluation_steps is None else problem.evaluation_steps
    report = evaluate(
        problem.algo,
        state.meta,
        problem.validation,
        batching=problem.batching,
        device=problem.device,
        at=(steps,),
    )
    values = {name: rows[:, -1].tolist() for name, rows in report.by_step.items()}
    tracker.episodes(state.step, "val", {"index": list(range(len(report.losses))), **values})
    if state.best_score is None or math.isnan(state.best_score) or report.score > state.best_score:
        state.best_score, state.best_step = report.score, state.step
        state.best = tree.map_meta(torch.clone, state.meta)
