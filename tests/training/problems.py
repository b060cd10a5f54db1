"""A training problem of milliseconds, with everything that `fit` asks for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalearn import tree
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import mean_squared
from metalearn.data import Sinusoid
from metalearn.episodes import CurveEpisodes, EpisodeSource, Manifest
from metalearn.gradients import Unroll
from metalearn.inner import lslr
from metalearn.tracking import Tracker
from metalearn.training.episodic import Problem, TrainState, fit, resume
from metalearn.training.outer import Outer
from metalearn.training.settings import TrainingSettings
from tests.tasks import network


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))


def adam_cosine(steps: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (
        lambda weights: torch.optim.Adam(weights, lr=0.01),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )


def problem(
    build: Callable[[], nn.Module] = mlp,
    train: EpisodeSource | None = None,
    validation: Manifest | None = None,
) -> Problem:
    """One-step MAML with learned rates on sine curves."""
    algo = MAML(network(build, dtype=torch.float32), 1, lslr(0.01), loss=mean_squared)
    source = CurveEpisodes(Sinusoid(), 5, 5)
    return Problem(
        algo,
        Unroll(),
        train or source,
        validation or Manifest(source, "val", 3),
        torch.device("cpu"),
    )


def started(of: Problem, steps: int, outer: Callable[[int], Any] = adam_cosine) -> TrainState:
    """The state of a run before its first step."""
    meta = of.algo.init()
    optimizer, schedule = outer(steps)
    return TrainState(meta, Outer(meta, optimizer, schedule), best=tree.map_meta(torch.clone, meta))


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars_by_step: list[tuple[int, dict]] = []
        self.episodes_by_step: list[tuple[int, str, dict]] = []

    def start(self, run):
        return {}

    def scalars(self, step, values):
        self.scalars_by_step.append((step, dict(values)))

    def episodes(self, step, split, values):
        self.episodes_by_step.append((step, split, dict(values)))

    def summary(self, values): ...

    def table(self, name, columns, rows): ...

    def close(self, status): ...


def trained(
    folder: Path,
    of: Problem | None = None,
    sinks: tuple = (),
    outer: Callable[[int], Any] = adam_cosine,
    warnings: list[str] | None = None,
    **settings: Any,
) -> tuple[TrainState, bool]:
    """Resume what `folder` holds, or begin, and train on; what `fit` returned comes second."""
    of = of or problem()
    configured = TrainingSettings(**{"meta_batch": 2, "steps": 6, **settings})
    state = started(of, configured.steps, outer)
    resume(state, folder, of.device, ([] if warnings is None else warnings).append)
    return state, fit(of, configured, state, folder, Tracker(sinks))


def flat(state: TrainState) -> dict[str, torch.Tensor]:
    """Every tensor that a run ends with, by name."""
    found = {}
    for kind, meta in (("meta", state.meta), ("best", state.best)):
        for part in ("init", "hyper", "buffers"):
            found |= {f"{kind}/{part}/{n}": t.clone() for n, t in meta[part].items()}
    for number, slots in state.outer.optimizer.state_dict()["state"].items():
        found |= {
            f"optimizer/{number}/{n}": t for n, t in slots.items() if isinstance(t, torch.Tensor)
        }
    return found


def same(a: TrainState, b: TrainState) -> None:
    """Assert that two runs ended bit for bit alike."""
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
    for name in ("step", "best_step", "best_score"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.outer.learning_rate == b.outer.learning_rate
