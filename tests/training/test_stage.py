"""A stage of a user's own, in one file: the run shell gives it everything else."""

import io
import os
import signal
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from metalearn.errors import UsageError
from metalearn.evaluation.report import write_json
from metalearn.tracking import Tracker, read_records
from metalearn.training.loop import fit
from metalearn.training.run import finished, run
from metalearn.training.stage import Pace, Position, Stage, Validation


class Line:
    """Fits y = w x by stochastic gradient descent on noisy points; the best |w - 3| is kept."""

    device, unit, size = torch.device("cpu"), "points", 4

    def __init__(self, config: Mapping[str, Any], stop_at: int | None = None) -> None:
        self.pace = Pace(config["steps"], validate_every=5, checkpoint_every=2, record_every=2)
        self.w, self.best, self.stop_at = torch.zeros(()), torch.zeros(()), stop_at
        self.began = 0

    def begin(self, folder, console) -> None:
        console.print("a line")
        self.began += 1

    def batches(self, steps: range, workers: int) -> Generator[torch.Tensor, None, None]:
        for step in steps:
            yield torch.randn(self.size, generator=torch.Generator().manual_seed(step))

    def step(self, number, batch, tracker):
        # The noise is of torch's global generator, which the shell keeps in its checkpoints.
        y = 3 * batch + 0.1 * torch.randn(self.size)
        self.w = self.w - 0.1 * ((self.w * batch - y) * batch).mean()
        if number == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": ((self.w * batch - y) ** 2).mean()}

    def check(self, values, number) -> None:
        if not values["loss"] < 1e6:
            raise UsageError(f"diverged at step {number}")

    def validate(self, number, tracker) -> Validation:
        return Validation(-abs(float(self.w) - 3), {"distance": abs(float(self.w) - 3)})

    def select(self) -> None:
        self.best = self.w.clone()

    def dump(self) -> dict[str, Any]:
        return {"w": self.w, "best": self.best}

    def load(self, saved) -> None:
        self.w, self.best = saved["w"], saved["best"]

    def finish(self, config, position, folder, tracker) -> dict[str, Any]:
        result = {
            "w": float(self.best),
            "steps": position.step,
            "selected_step": position.best_step,
            "validation_score": position.best_score,
        }
        write_json(folder / "result.json", result)
        return result

    def table(self, result) -> Table:
        return Table(f"w = {result['w']:.3f}")


def here(folder: Path, stop_at: int | None = None, **changes: Any) -> tuple[Any, str]:
    config = {
        "run_dir": str(folder), "resume": "auto", "seed": 0, "steps": 23,
        "tracker": {"mode": "disabled"}, **changes,
    }  # fmt: skip
    printed = Console(file=io.StringIO(), width=200)

    def build(config: Mapping[str, Any]) -> tuple[dict[str, Any], Stage]:
        return dict(config), Line(config, stop_at)

    try:
        score = run(config, build, printed)
    except SystemExit as stopped:
        assert stopped.code == 128 + signal.SIGTERM
        score = None
    return score, printed.file.getvalue()  # type: ignore[attr-defined]


def records(folder: Path) -> list[tuple[int, float]]:
    found = read_records(folder / "metrics.jsonl")
    return [(r["step"], r["loss"]) for r in found if r["kind"] == "scalars"]


def test_it_trains_selects_and_leaves_a_result(tmp_path: Path) -> None:
    score, printed = here(tmp_path / "a")
    result = finished(tmp_path / "a")
    assert result is not None and score == result["validation_score"]
    assert result["w"] == pytest.approx(3, abs=0.5) and result["steps"] == 23
    assert -abs(result["w"] - 3) == pytest.approx(score)
    # Every second step, and those of a validation: the fifth ones and the last.
    assert [step for step, _ in records(tmp_path / "a")] == sorted(
        {*range(2, 23, 2), *range(5, 23, 5), 23}
    )
    assert "a line" in printed and "w = " in printed
    rates = [
        r["points_per_second"] for r in read_records(tmp_path / "a/metrics.jsonl") if "loss" in r
    ]
    assert len(rates) == 14 and min(rates) > 0
    again, printed = here(tmp_path / "a")
    assert again == score and "has finished before" in printed and "a line" not in printed


@pytest.mark.parametrize("at", [1, 6, 11, 22])
def test_stopped_and_resumed_it_ends_in_the_same_bits(tmp_path: Path, at: int) -> None:
    want, _ = here(tmp_path / "whole")
    stopped, printed = here(tmp_path / "broken", stop_at=at)
    assert stopped is None and f"stopped at step {at} of 23 after a checkpoint" in printed
    assert finished(tmp_path / "broken") is None
    score, printed = here(tmp_path / "broken")
    assert f"at step {at}" in printed and score == want
    assert finished(tmp_path / "broken") == finished(tmp_path / "whole")
    # A stop between two records leaves none of its own.
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


def test_a_watch_is_told_which_validation_it_is(tmp_path: Path) -> None:
    """A stage may count its validations by something else than steps."""
    told: list[int] = []
    stage, position = Line({"steps": 23}), Position()
    assert fit(
        stage, position, tmp_path / "a", Tracker([]), watch=lambda n, _: bool(told.append(n))
    )
    assert told == [1, 2, 3, 4] and position.step == 23
    stage, position = Line({"steps": 23}), Position()
    assert not fit(stage, position, tmp_path / "b", Tracker([]), watch=lambda n, _: n == 2)
    assert position.step == 10


def test_a_lost_run_and_another_configuration(tmp_path: Path) -> None:
    class Lost(Line):
        def step(self, number, batch, tracker):
            return {"loss": torch.tensor(float("nan") if number > 3 else 1.0)}

    config = {
        "run_dir": str(tmp_path / "lost"), "resume": "auto", "seed": 0, "steps": 9,
        "tracker": {"mode": "disabled"},
    }  # fmt: skip
    with pytest.raises(UsageError, match="diverged at step 4"):
        run(config, lambda c: (dict(c), Lost(c)), Console(file=io.StringIO()))
    assert [p.name for p in (tmp_path / "lost/checkpoints").iterdir()] == ["step-00000002"]
    with pytest.raises(UsageError, match="holds a run with steps=9, not 8"):
        run({**config, "steps": 8}, lambda c: (dict(c), Line(c)), Console(file=io.StringIO()))


def test_processor_time_counts_only_what_the_process_computes(tmp_path: Path) -> None:
    class Waiting(Line):
        def __init__(self, clock: str) -> None:
            super().__init__({"steps": 6})
            self.pace = Pace(6, validate_every=6, checkpoint_every=6, seconds=0.5, clock=clock)

        def step(self, number, batch, tracker):
            time.sleep(0.2)
            return super().step(number, batch, tracker)

    steps = {}
    for clock in ("wall", "processor"):
        position = Position()
        assert fit(Waiting(clock), position, tmp_path / clock, Tracker([]))
        steps[clock] = position.step
    assert steps["wall"] <= 3 and steps["processor"] == 6
