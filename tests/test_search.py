"""`-m hydra/sweeper=optuna`: asked, told, averaged over seeds, kept and gone on with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from metalearn.training import run as shell
from tests.command import FAST, metalearn
from tests.spread import spread

SMALL = (*FAST, "dataset=sinusoid", "batching=loop")
SMALL = tuple(o for o in SMALL if not o.startswith(("dataset.", "backbone.")))
ASKED = ("train", "-m", "hydra/sweeper=optuna", *SMALL)
KEPT = ("hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=s")


@pytest.fixture
def scores(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every run returns minus its rate, and 1 for each seed; where the rate is above 1 it fails."""
    asked: list[dict[str, Any]] = []

    def train(config: dict[str, Any], *_: Any) -> float:
        asked.append(config)
        rate = float(config["inner"]["rate"])
        if rate > 1:
            raise RuntimeError("a bug")
        return config["seed"] - rate

    monkeypatch.setattr(shell, "run", train)
    return asked


def best() -> dict[str, Any]:
    """What the newest sweep in the current folder wrote down."""
    newest = max(Path("runs/multirun").glob("*/optimization_results.yaml"), key=os.path.getmtime)
    return yaml.safe_load(newest.read_text())


def records() -> list[dict[str, Any]]:
    (path,) = Path("runs/multirun").glob("*/jobs.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_of_real_runs_is_found(workplace: Path) -> None:
    outcome = metalearn(
        *ASKED, "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=0",
        'hydra.sweeper.params={inner.rate: "tag(log, interval(0.001, 0.5))"}',
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = [record["score"] for record in records()]
    assert len(found) == 2 and best()["best_value"] == max(found)
    assert 0.001 <= best()["best_params"]["inner.rate"] <= 0.5
    assert "best of 2 trials" in outcome.out


def test_seeds_are_averaged_and_not_searched(scores: list[dict[str, Any]]) -> None:
    outcome = metalearn(
        *ASKED, "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "seed=0,1",
        "inner.rate=0.25,0.5", "algorithm.steps=range(1,4)", "evaluation.seed=choice(3,4)",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "every trial is the mean over seed=0,1" in outcome.out
    assert [config["seed"] for config in scores] == [0, 1] * 3
    for a, b in zip(scores[::2], scores[1::2], strict=True):
        assert (a["inner"], a["algorithm"]) == (b["inner"], b["algorithm"])
        assert a["algorithm"]["steps"] in (1, 2, 3)
    assert set(best()["best_params"]) == {"inner.rate", "algorithm.steps", "evaluation.seed"}
    assert best()["best_value"] == 0.5 - float(best()["best_params"]["inner.rate"])


def test_a_study_in_a_file_goes_on(
    scores: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*ASKED, *KEPT, "hydra.sweeper.n_trials=3", "inner.rate=interval(0.0, 1.0)")
    real = shell.run

    def stopped(config: dict[str, Any], *rest: Any) -> float:
        if len(scores) == 1:
            scores.append(config)
            raise SystemExit(128 + signal.SIGTERM)
        return real(config, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(shell, "run", stopped)
    outcome = metalearn(*asked)
    assert outcome.code == 143 and "the same command goes on with this study" in outcome.err
    outcome = metalearn(*asked)
    assert outcome.code == 0, outcome.err
    # The trial that was left is the first to be taken up, and no trial is run twice.
    assert scores[2]["inner"]["rate"] == scores[1]["inner"]["rate"] and len(scores) == 4
    assert "best of 3 trials" in outcome.out
    outcome = metalearn(*asked)
    assert outcome.code == 0 and len(scores) == 4
    outcome = metalearn(*ASKED, *KEPT, "inner.rate=0.1,0.2")
    assert "is of another search space" in outcome.mistake


def test_trials_of_a_process_that_was_killed_are_taken_up(scores: list[dict[str, Any]]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    study = optuna.create_study(storage="sqlite:///s.db", study_name="s", direction="maximize")
    space = {"inner.rate": optuna.distributions.FloatDistribution(0.0, 1.0)}
    theirs, others = study.ask(space), study.ask(space)
    theirs.set_user_attr("process", [os.uname().nodename, gone.pid])
    others.set_user_attr("process", ["another-host", gone.pid])
    asked = (*ASKED, *KEPT, "hydra.sweeper.n_trials=1", "inner.rate=interval(0.0, 1.0)")
    assert metalearn(*asked).code == 0
    assert [c["inner"]["rate"] for c in scores] == [theirs.params["inner.rate"]]
    assert study.trials[others.number].state.name == "RUNNING"


def test_without_a_file_nothing_is_promised(
    scores: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> float:
        raise SystemExit(128 + signal.SIGTERM)

    monkeypatch.setattr(shell, "run", stopped)
    outcome = metalearn(*ASKED, "inner.rate=interval(0.0, 1.0)")
    assert outcome.code == 143 and "goes on" not in outcome.err
    assert "the same command begins another" in outcome.err


def test_a_search_without_one_good_trial(scores: list[dict[str, Any]]) -> None:
    outcome = metalearn(*ASKED, "hydra.sweeper.n_trials=2", "inner.rate=interval(2.0, 3.0)")
    assert outcome.code == 1 and outcome.err.count("RuntimeError: a bug") == 2
    assert "Traceback" not in outcome.err
    assert not list(Path("runs/multirun").glob("*/optimization_results.yaml"))


MISTAKES = {
    "seed=0,1": "has nothing to search",
    "inner.rate=interval(0.5, 0.1)": "inner.rate=interval(0.5, 0.1)",
    "inner.rate=tag(log, interval(0.0, 0.1))": "cannot be searched",
    "inner.rate=interval(0.1, 0.5) hydra.sweeper.n_trials=0": "n_trials=0 must be 1 or more",
    "inner.rate=interval(0.1, 0.5) hydra.sweeper.direction=minimize": "direction is maximize",
    "inner.rate=interval(0.1, 0.5) hydra.sweeper.storage=nowhere": "storage=nowhere cannot be used",
    "inner.rate=interval(0.1, 0.5) hydra.sweeper.trials=3": "no key hydra.sweeper.trials",
    "inner.rate=interval(0.1, 0.5) hydra.sweeper.sampler._target_=optuna.No": "cannot be imported",
}


@pytest.mark.parametrize("words", spread(MISTAKES, share=2))
def test_a_mistake_is_one_line(words: str, scores: list[dict[str, Any]]) -> None:
    split = words.replace(", ", ",\0").split(" ")
    outcome = metalearn(*ASKED, *(word.replace("\0", " ") for word in split))
    assert MISTAKES[words] in outcome.mistake and not scores
