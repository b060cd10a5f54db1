"""`check=float64`: one task in ten calls again in float64, beside what training takes."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn import tree
from metalearn.algorithms import MAML
from metalearn.engine import Engine
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint
from metalearn.inner import sgd
from tests.command import metalearn
from tests.tasks import classification, network


def tiny() -> tuple[MAML, dict]:
    module = network(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        dtype=torch.float32,
    )
    algo = MAML(module, 2, sgd(0.1))
    return algo, algo.init()


EPISODES = classification(shape=(1, 2, 2), dtype=torch.float32)


class FifthMore(Adjoint):
    """A gradient that is a fifth too long in float32, as no engine says of itself."""

    def task(self, algo, meta, task, run):
        gradient, metrics = super().task(algo, meta, task, run)
        if task.query.x.dtype == torch.float32:
            gradient["init"] = tree.scale(gradient["init"], 1.2)
        return gradient, metrics


def test_one_call_in_ten_is_looked_at_and_nothing_else_changes() -> None:
    algo, meta = tiny()
    plain, checked = Engine("vmap"), Engine("vmap", check="float64")
    torch.manual_seed(3)
    fresh = []
    for _ in range(11):
        want, got = (e(Adjoint(), algo, meta, EPISODES)[0] for e in (plain, checked))
        assert all((got["init"][n] == t).all() for n, t in want["init"].items())
        fresh.append(bool(checked.sample.record()))
    assert fresh == [True, *[False] * 9, True]
    assert len(checked.sample.errors) == 2 and max(checked.sample.errors) < 1e-5
    assert checked.sample.off == 0 and not plain.sample.errors
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert (torch.rand(2) == drawn).all()


def test_a_task_that_is_off_is_counted_by_every_plan_of_the_engine() -> None:
    algo, meta = tiny()
    engine = Engine("vmap", check="float64")
    engine.with_plan(Engine("loop").plan(Adjoint(), algo, meta, EPISODES))(
        FifthMore(), algo, meta, EPISODES
    )
    assert engine.sample.errors == pytest.approx([0.2], abs=1e-4)
    assert engine.sample.record() == {"float64_error": engine.sample.errors[0], "float64_off": 1.0}
    assert "1 of 1 tasks had a meta-gradient that is off by more than 5%" in str(engine.sample)


def test_what_it_cannot_check_is_one_line() -> None:
    with pytest.raises(UsageError, match="check='float32' is not known; use none or float64"):
        Engine(check="float32")  # type: ignore[arg-type]


def test_a_run_logs_it_and_its_result_keeps_it(workplace: Path) -> None:
    small = ("training.steps=12", "training.validate_every=12", "training.meta_batch=2")
    few = (
        "evaluation.episodes=4",
        "evaluation.validation_episodes=2",
        "evaluation.untrained=false",
    )
    asked = (
        "experiment=sinusoid_maml_10shot",
        *small,
        *few,
        "tracker=disabled",
        "tracker.plots=false",
        "run_dir=run",
    )
    outcome = metalearn("train", *asked, "batching=vmap", "check=float64")
    assert outcome.code == 0, outcome.err
    assert "float64: 0 of 2 tasks had a meta-gradient that is off by more than 5%" in outcome.out
    result = json.loads(Path("run/result.json").read_text())
    assert len(result["float64_errors"]) == 2 and max(result["float64_errors"]) < 0.05
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "float64_error" in row] == [1, 11]
