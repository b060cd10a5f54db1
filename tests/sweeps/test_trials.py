"""A search over the workers of a study: asked, pruned, told once, whenever a worker dies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from metalearn.errors import UsageError
from metalearn.sweeps.claims import Claims
from metalearn.sweeps.plan import SEARCH
from metalearn.sweeps.search import Search, Searched, read_search
from metalearn.sweeps.status import retry
from metalearn.sweeps.trials import TrialJobs
from metalearn.sweeps.worker import work
from tests.command import metalearn
from tests.sweeps.test_study import TINY

QUIET = Console(quiet=True)
SPACE = [
    Searched("kind", distribution_to_json(CategoricalDistribution(["a", "b"])), {}),
    Searched("x", distribution_to_json(FloatDistribution(0.0, 1.0)), {}),
    Searched("y", distribution_to_json(FloatDistribution(0.0, 1.0)), {"kind": ["b"]}),
]


class Killed(BaseException):
    """As SIGKILL: nothing of the process comes after it."""


def searched(trials: int = 12, pruner: str = "asha", seeds: list[int] | None = None) -> Search:
    sampler = {"kind": "tpe", "n_startup_trials": 4}
    return Search("train", [], seeds or [], trials, 5, sampler, {"kind": pruner}, SPACE)


def compose(overrides: list[str]) -> dict[str, Any]:
    return dict(o.split("=") for o in overrides)


def train(config: dict[str, Any], console: Console, watch: Any) -> float:
    """Nine validations, every second step, that go on from where they were in the run folder."""
    steps = Path(config["run_dir"]) / "checkpoints"
    steps.mkdir(parents=True, exist_ok=True)
    quality = float(config["x"]) - float(config.get("y", 0.5)) + 0.1 * int(config.get("seed", 0))
    for number in range(len(list(steps.iterdir())) + 1, 10):
        ends = watch is not None and number < 9 and watch(number, quality * number)
        (steps / f"step-{2 * number:08}").mkdir()
        if ends:
            raise SystemExit(0)
    return 9 * quality


def finish(study: Path, search: Search, perform: Any = train) -> TrialJobs:
    study.mkdir(exist_ok=True)
    jobs = TrialJobs(study, search, compose, perform)  # type: ignore[arg-type]
    work(study, jobs, QUIET)
    return jobs


def told(study: Path) -> list[tuple[Any, ...]]:
    """Of every trial: slot, values, how it ended, score and validations."""
    backend = JournalFileBackend(str(study / "trials.journal"))
    kept = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    return [
        (t.user_attrs["slot"], t.params, t.state.name, t.value, t.intermediate_values)
        for t in kept.get_trials()
    ]


def test_a_search_that_is_killed_at_every_write_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "alone", searched())
    alone = told(tmp_path / "alone")
    assert [slot for slot, *_ in alone] == list(range(12))
    assert {state for _, _, state, *_ in alone} == {"COMPLETE", "PRUNED"}
    assert all(("y" in params) == (params["kind"] == "b") for _, params, *_ in alone)
    assert 0 < sum("y" in params for _, params, *_ in alone) < 12

    real: Callable[..., None] = JournalFileBackend.append_logs
    writes, before = [0], [False]

    def append(self: Any, logs: Any) -> None:
        writes[0] += 1
        dies = writes[0] == 3 + lives % 3  # in this worker's life
        if not (dies and before[0]):
            real(self, logs)
        if dies:
            raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)
    monkeypatch.setattr("metalearn.sweeps.claims.LIVES", 1000)
    lives = 0
    for lives in range(200):
        writes[0], before[0] = 0, lives % 2 == 1
        try:
            finish(tmp_path / "killed", searched())
            break
        except Killed:
            pass
    assert lives > 10 and told(tmp_path / "killed") == alone
    attempts = Claims(tmp_path / "killed").read()
    assert all(len([a for a in own if a.ends]) == 1 for own in attempts.values())


def test_a_crashed_trial_is_tried_once_more_and_then_told_as_failed(tmp_path: Path) -> None:
    tries: list[str] = []

    def perform(config: dict[str, Any], *rest: Any) -> float:
        tries.append(Path(config["run_dir"]).name)
        if tries.count(tries[-1]) < (3 if tries[-1] == "trial-0001" else 2):
            raise RuntimeError("a bug")
        return float(config["x"])

    jobs = finish(tmp_path / "s", searched(3, "none"), perform)
    assert tries == [name for n in range(3) for name in [f"trial-{n:04}"] * 2]
    assert [state for _, _, state, *_ in told(tmp_path / "s")] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert jobs.best().startswith("best of 2 trials: ")


def test_a_failed_trial_that_is_retried_has_its_values_again(tmp_path: Path) -> None:
    def perform(config: dict[str, Any], console: Console, watch: Any) -> float:
        if Path(config["run_dir"]).name == "trial-0001" and not mended:
            watch(1, 0.5)
            raise UsageError("a mistake")
        return float(config["x"])

    mended: list[bool] = []
    jobs = finish(tmp_path, searched(3, "none"), perform)
    assert retry(tmp_path, jobs) == ["trial-0001"]
    work(tmp_path, jobs, QUIET)  # as wrong as before
    mended.append(True)
    work(tmp_path, jobs, QUIET)
    assert [state for _, _, state, *_ in told(tmp_path)] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert retry(tmp_path, jobs) == ["trial-0001"] and not retry(tmp_path, jobs)
    work(tmp_path, jobs, QUIET)
    trials = [trial for trial in told(tmp_path) if trial[0] == 1]
    assert [state for _, _, state, *_ in trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert trials[0][1] == trials[1][1] == trials[2][1]
    assert trials[2][3] == trials[2][1]["x"] and trials[2][4] == {1: 0.5}
    assert jobs.best().startswith("best of 3 trials: ")


def test_a_score_that_is_no_number_fails_at_once_and_seeds_are_averaged(tmp_path: Path) -> None:
    finish(tmp_path / "nan", searched(1, "none"), lambda *_: float("nan"))
    assert [state for _, _, state, *_ in told(tmp_path / "nan")] == ["FAIL"]
    finish(tmp_path / "seeds", searched(1, "none", [0, 1, 2]))
    ((_, params, state, value, _),) = told(tmp_path / "seeds")
    quality = params["x"] - params.get("y", 0.5) + 0.1
    assert state == "COMPLETE" and value == pytest.approx(9 * quality)
    assert len(list((tmp_path / "seeds" / "runs").iterdir())) == 3


def test_a_journal_that_a_full_disk_has_cut_goes_on(tmp_path: Path) -> None:
    finish(tmp_path / "s", searched(2, "none"))
    with (tmp_path / "s" / "trials.journal").open("a") as file:
        file.write('{"op_code":5,"wor')
    finish(tmp_path / "s", searched(3, "none"))
    assert len(told(tmp_path / "s")) == 3


def study(search: dict[str, Any] | str, **more: Any) -> None:
    held = {"overrides": [*TINY, "training.steps=3"], "search": search, **more}
    Path("study.yaml").write_text(json.dumps(held))


REAL = {
    "trials": 3,
    "pruner": {"kind": "asha", "reduction_factor": 2},
    "space": {
        "algorithm": ["maml", "anil"],
        "inner.rate": "tag(log, interval(0.001, 0.5))",
        "algorithm.steps": {"values": "range(1, 3)", "when": {"algorithm": "maml"}},
    },
}


def test_real_runs_are_searched_and_more_trials_go_on(workplace: Path) -> None:
    study(REAL)
    assert "3 trials in s/search.json" in metalearn("sweep", "plan", "study.yaml", "s").out
    outcome = metalearn("sweep", "work", "s", "most=2")
    assert outcome.code == 0 and "2 runs ended here" in outcome.out, outcome.err
    study({**REAL, "trials": 4})
    assert metalearn("sweep", "plan", "study.yaml", "s").code == 0
    outcome = metalearn("sweep", "work", "s")
    assert "2 runs ended here" in outcome.out and "best of " in outcome.out
    status = metalearn("sweep", "status", "s").out
    assert status.startswith("4 runs: ") and "0 waiting" in status and "with algorithm=" in status
    for _, params, state, *_ in told(Path("s")):
        assert state in ("COMPLETE", "PRUNED")
        assert set(params) - {"algorithm.steps"} == {"algorithm", "inner.rate"}
    study({**REAL, "seed": 7})
    line = metalearn("sweep", "plan", "study.yaml", "s").mistake
    assert line == "s is a search with another seed; name another folder"
    assert read_search(Path("s")).trials == 4
    Path("s", SEARCH).write_text("{}")
    assert "s/search.json is damaged" in metalearn("sweep", "work", "s").mistake


MISTAKES: dict[str, dict[str, Any]] = {
    "search.no key trial (did you mean trials?); use trials, seed": {"trial": 3},
    "search.trials=0 must be 1 or more": {"trials": 0},
    "search.sampler=tp is not known; choose from tpe, random, gp": {"sampler": "tp"},
    "search.pruner asha: ": {"pruner": {"kind": "asha", "reduction": 2}},
    "search.sampler takes its seed from search.seed": {"sampler": {"kind": "tpe", "seed": 3}},
    "search.space is empty; give it a range": {"space": {}},
    "search.space.a=3 is one value; put it into overrides": {"space": {"a": 3}},
    "search.space.a=interval(1 cannot be read": {"space": {"a": "interval(1"}},
    "search.a=interval(3,1) cannot be searched": {"space": {"a": "interval(3,1)"}},
    "search.sampler=['tpe'] is not known": {"sampler": ["tpe"]},
    "seed is for seeds to say; leave it out": {"space": {"seed": [1, 2]}},
    "training.steps stands in overrides too": {"space": {"training.steps": [1, 2]}},
    "algorithm=protonet cannot use gradient=first_order": {
        "space": {"algorithm": ["protonet", "maml"], "gradient": "glob(first*)"}
    },
    "search.space.b.when names a, which is no choice before it": {
        "space": {"b": {"values": [1, 2], "when": {"a": 1}}}
    },
    "search.space.b.when names a=3, which it never is": {
        "space": {"a": [1, 2], "b": {"values": [1, 2], "when": {"a": 3}}}
    },
    "search.space.b must be {values: ..., when: {name: value}}": {"space": {"b": {"value": 1}}},
    "inner.rat=0.1 and 1 more: no key inner.rat (did you mean inner.rate?)": {
        "space": {"inner.rat": [0.1, 0.2]}
    },
    "algorithm=nope is not known": {"space": {"algorithm": ["maml", "anil", "nope"]}},
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_of_a_search_is_one_line(line: str, workplace: Path) -> None:
    study({"space": {"inner.rate": "interval(0.1, 0.2)"}, **MISTAKES[line]})
    assert line in metalearn("sweep", "plan", "study.yaml", "s").mistake
    assert not Path("s").exists()


def test_a_search_has_no_lists_and_a_pruner_one_seed(workplace: Path) -> None:
    study(REAL, lists={"inner.rate": [1]})
    assert "a search has a space, and no groups" in metalearn("sweep", "plan", "study.yaml").mistake
    study(REAL, seeds=[0, 1])
    assert "a pruner looks at one run" in metalearn("sweep", "plan", "study.yaml").mistake
