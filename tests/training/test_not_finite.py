"""Queries that are not finite: never taken for chance, never silent."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from metalearn import evaluate
from metalearn.algorithms import MAML, Reptile
from metalearn.algorithms.losses import mean_squared
from metalearn.data import Sinusoid
from metalearn.episodes import CurveEpisodes, Manifest
from metalearn.errors import Diverged
from metalearn.evaluation.comparison.methods import Cost, Measured
from metalearn.gradients import Displacement
from metalearn.inner import sgd
from metalearn.tracking import Tracker
from metalearn.training import outer
from metalearn.training.checkpoint import latest_checkpoint
from tests.command import FAST, metalearn
from tests.tasks import classification, network
from tests.training.problems import Recorder, problem, trained
from tests.training.test_fit import Rigged, checkpoints

SMALL = ("dataset.size=16", "batching=loop", "run_dir=r")


def spoilt(*calls: int, value: float = float("nan"), rows: slice = slice(None)) -> Manifest:
    """Validation episodes whose targets are not finite in those validations."""

    def change(call, episodes):
        if call in calls:
            episodes.query.y[rows] = value
        return episodes

    return Manifest(Rigged(change), "val", 3)


def records(folder: Path = Path("r")) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "more", [FAST, ("debug=fast", "dataset=sinusoid", "tracker=disabled", "tracker.plots=false")]
)
def test_a_run_that_diverged_in_its_last_step_fails_in_one_line(workplace, more) -> None:
    """Its last validation is what sees it: no meta-gradient is taken after that."""
    given = [word for word in SMALL if "size" not in word or more is FAST]
    outcome = metalearn("train", *more, *given, "training.steps=1", "outer.optimizer.lr=1e30")
    assert "2 of 2 validation episodes are not finite at step 1; lower outer" in outcome.mistake
    assert not Path("r/result.json").exists() and Path("r/config.yaml").exists()
    assert "nan" not in Path("r/metrics.jsonl").read_text()


def test_validation_that_is_not_finite_ends_the_run_and_keeps_the_checkpoints(tmp_path) -> None:
    recorder = Recorder()
    with pytest.raises(
        Diverged, match="3 of 3 validation episodes are not finite at step 4; lower"
    ):
        trained(tmp_path, (recorder,), validation=spoilt(2), steps=6, validate_every=2)
    assert checkpoints(tmp_path) == [2]
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None and saved["best_score"] < 0


def test_a_few_of_them_are_told_and_the_step_is_not_selected(tmp_path, capsys) -> None:
    settings = {"steps": 6, "validate_every": 2, "validation": spoilt(3, rows=slice(1))}
    state, done = trained(tmp_path, **settings)
    assert done and state.best_step < 6 and np.isfinite(state.best_score)
    assert "step 6: 1 of 3 validation episodes are not finite" in capsys.readouterr().out


def test_a_query_loss_that_no_gradient_follows(tmp_path) -> None:
    """Reptile's direction is finite where the queries are not."""

    def change(call, episodes):
        return episodes._replace(query=episodes.query._replace(y=episodes.query.y * float("inf")))

    stage = problem(train=Rigged(change))
    stage.gradient = Displacement()
    stage.algo = Reptile(stage.algo.module, 1, sgd(0.01), mean_squared)
    stage.meta["hyper"] = {}
    stage.outer = outer.Outer(stage.meta, lambda weights: torch.optim.SGD(weights, lr=1.0))
    with pytest.raises(Diverged, match="the query loss is not finite at step 1"):
        stage.step(1, stage.train.batch("train", [0, 1]), Tracker([]))


def test_an_episode_is_counted() -> None:
    algo = MAML(network(lambda: nn.Linear(4, 3)), 1)
    episodes = classification(tasks=4, shape=(4,))
    clean = evaluate(algo, algo.init(), episodes)
    assert clean.not_finite == 0
    episodes.query.x[1, 2] = float("nan")
    report = evaluate(algo, algo.init(), episodes)
    assert report.not_finite == 1 and np.isnan(report.losses[1])
    # Five of six queries answer, and what is not finite is wrong.
    assert report.accuracies[1] <= clean.accuracies[1] and 6 * report.accuracies[1] % 1 == 0
    assert np.isfinite(report.accuracy.mean)
    episodes.query.x[2] = float("nan")
    assert evaluate(algo, algo.init(), episodes).accuracies[2] == 0
    curves = CurveEpisodes(Sinusoid(), 5, 5).batch("test", [0, 1])
    curves.query.y[0] = float("inf")
    algo = MAML(network(lambda: nn.Linear(1, 1), dtype=torch.float32), 1, loss=mean_squared)
    assert evaluate(algo, algo.init(), curves).not_finite == 1


def test_a_comparison_notes_it() -> None:
    algo = MAML(network(lambda: nn.Linear(4, 3)), 1)
    episodes = classification(tasks=4, shape=(4,))
    episodes.query.x[3] = float("nan")
    measured = Measured("none")
    measured.add(5, evaluate(algo, algo.init(), episodes), Cost(1.0, 1, 1), None)
    (note,) = measured.notes
    assert note.startswith("5-shot, not finite: 1 of 4 episodes; ")
    assert measured.plain()["shots"]["5"]["accuracies"][3] == 0


def test_a_test_that_is_not_finite_leaves_weights_and_result_and_fails(workplace) -> None:
    words = ("train", *FAST, *SMALL, "training.steps=1", "algorithm=protonet")
    real = evaluate

    def changed(algo, meta, manifest, *rest, **more):
        if isinstance(manifest, Manifest) and manifest.split == "test":
            meta = {**meta, "init": {n: t * lost for n, t in meta["init"].items()}}
        return real(algo, meta, manifest, *rest, **more)

    lost = float("nan")
    places = ("metalearn.evaluation.on_features.evaluate", "metalearn.training.episodic.evaluate")
    with mock.patch(places[0], changed), mock.patch(places[1], changed):
        outcome = metalearn(*words)
    assert "4 of 4 test episodes are not finite; lower outer.optimizer.lr" in outcome.mistake
    result = json.loads(Path("r/result.json").read_text())
    assert result["not_finite_episodes"] == 4 and result["accuracy"] == 0
    assert Path("r/weights.safetensors").exists() and "not finite" in outcome.out
    again = metalearn(*words)
    assert again.mistake == outcome.mistake and "has finished before" in again.out
    told = metalearn("evaluate", "run=r")
    assert told.code == 0 and "not finite" not in told.out


def test_steps_that_float16_leaves_out_record_no_nan(workplace) -> None:
    """The first two overflow, as where the scale of the loss is too large."""
    real, calls = outer.Outer.step, []

    def overflowing(self, gradient):
        calls.append(1)
        if len(calls) in (2, 3):  # the first is the rehearsal
            weight = next(iter(gradient["init"].values()))
            weight.view(-1)[0] = float("inf")
        return real(self, gradient)

    with mock.patch.object(outer.Outer, "step", overflowing):
        outcome = metalearn("train", *FAST, *SMALL, "precision=fp16", "training.steps=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("overflowed in float16") == 1
    text = Path("r/metrics.jsonl").read_text()
    assert "nan" not in text.lower() and "inf" not in text.lower()
    rows = [row for row in records() if row["kind"] == "scalars"]
    assert [row.get("overflowed") for row in rows] == [1.0, 1.0, None]
    assert ["grad_norm" in row for row in rows] == [False, False, True]
