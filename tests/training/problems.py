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
from metalearn.engine import Engine
from metalearn.episodes import CurveEpisodes, EpisodeSource, Manifest
from metalearn.gradients import Unroll
from metalearn.inner import lslr
from metalearn.tracking import Tracker
from metalearn.training.episodic import Episodic
from metalearn.training.loop import fit
from metalearn.training.outer import Outer
from metalearn.training.settings import TrainingSettings
from metalearn.training.stage import Position, resume
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
    outer: Callable[[int], Any] = adam_cosine,
    **settings: Any,
) -> Episodic:
    """One-step MAML with learned rates on sine curves, before its first step."""
    configured = TrainingSettings(**{"meta_batch": 2, "steps": 6, **settings})
    algo = MAML(network(build, dtype=torch.float32), 1, lslr(0.01), loss=mean_squared)
    source = CurveEpisodes(Sinusoid(), 5, 5)
    optimizer, schedule = outer(configured.steps)
    meta = tree.map_meta(torch.clone, algo.init())
    return Episodic(
        algo,
        Unroll(),
        Engine("loop"),
        train or source,
        validation or Manifest(source, "val", 3),
        Manifest(source, "test", 3),
        meta,
        Outer(meta, optimizer, schedule),
        configured,
        torch.device("cpu"),
    )


class Trained:
    """A stage after training, and where it stands."""

    def __init__(self, stage: Episodic) -> None:
        self.stage, self.position = stage, Position()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.position if hasattr(self.position, name) else self.stage, name)


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
    sinks: tuple = (),
    warnings: list[str] | None = None,
    **of: Any,
) -> tuple[Trained, bool]:
    """Resume what `folder` holds, or begin, and train on; what `fit` returned comes second.

    of: what `problem` takes.
    """
    run = Trained(problem(**of))
    resume(run.stage, run.position, folder, ([] if warnings is None else warnings).append)
    return run, fit(run.stage, run.position, folder, Tracker(sinks))


def flat(state: Trained | Episodic) -> dict[str, torch.Tensor]:
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


def same(a: Trained, b: Trained) -> None:
    """Assert that two runs ended bit for bit alike."""
    left, right = flat(a), flat(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
    for name in ("step", "best_step", "best_score"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.outer.learning_rate == b.outer.learning_rate
