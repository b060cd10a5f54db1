"""The outer loop: which episodes it takes, how it selects, when it stops."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from metalearn import evaluate
from metalearn.data import Sinusoid
from metalearn.episodes import CurveEpisodes, Manifest
from metalearn.errors import UsageError
from metalearn.training.checkpoint import latest_checkpoint, load_checkpoint
from tests.training.problems import Recorder, flat, same, trained


class Rigged:
    """A source that notes what is asked for, and changes it."""

    def __init__(self, change=lambda call, episodes: episodes) -> None:
        self.source = CurveEpisodes(Sinusoid(), 5, 5)
        self.change, self.asked = change, []

    @property
    def shape(self):
        return self.source.shape

    def check(self, split) -> None: ...

    def fingerprint(self, split, index):
        return self.source.fingerprint(split, index)

    def batch(self, split, indices):
        self.asked.append((split, list(indices)))
        return self.change(len(self.asked), self.source.batch(split, indices))


def with_errors(*errors: float) -> Manifest:
    """Validation episodes whose targets are off by `errors[n]` in the n-th validation."""

    def change(call, episodes):
        off = episodes.query._replace(y=episodes.query.y + errors[call - 1])
        return episodes._replace(query=off)

    return Manifest(Rigged(change), "val", 3)


def checkpoints(folder) -> list[int]:
    found = (folder / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def test_each_step_takes_the_next_training_episodes_and_no_others(tmp_path) -> None:
    train, validation = Rigged(), Rigged()
    recorder = Recorder()
    of = {"train": train, "validation": Manifest(validation, "val", 3)}
    state, done = trained(tmp_path, (recorder,), **of, steps=5, meta_batch=3, validate_every=2)
    assert done and state.step == 5
    assert train.asked == [("train", list(range(3 * s, 3 * s + 3))) for s in range(5)]
    assert validation.asked == [("val", [0, 1, 2])] * 3
    kinds = [(step, split, values["index"]) for step, split, values in recorder.episodes_by_step]
    assert kinds == [
        (1, "train", [0, 1, 2]),
        (2, "train", [3, 4, 5]),
        (2, "val", [0, 1, 2]),
        (3, "train", [6, 7, 8]),
        (4, "train", [9, 10, 11]),
        (4, "val", [0, 1, 2]),
        (5, "train", [12, 13, 14]),
        (5, "val", [0, 1, 2]),
    ]


def test_scalars_are_those_of_the_step(tmp_path) -> None:
    recorder = Recorder()
    trained(tmp_path, sinks=(recorder,), steps=4)
    losses = {step: v["loss"] for step, split, v in recorder.episodes_by_step if split == "train"}
    for number, (step, values) in enumerate(recorder.scalars_by_step, 1):
        assert step == number
        assert values["loss"] == pytest.approx(np.mean(losses[step]))
        cosine = 0.01 * (1 + np.cos(np.pi * (step - 1) / 4)) / 2
        assert values["learning_rate"] == pytest.approx(cosine)
        assert values["grad_norm"] > 0 and values["tasks_per_second"] > 0
        assert values["peak_memory_bytes"] > 1e7


def test_selection_is_by_validation_alone(tmp_path) -> None:
    """Validation is best at step 6, whatever training says."""
    errors = with_errors(30.0, 20.0, 0.0, 10.0, 10.0)
    recorder = Recorder()
    pace = {"steps": 10, "validate_every": 2, "checkpoint_every": 100, "keep": 1}
    state, _ = trained(tmp_path, (recorder,), validation=errors, **pace)
    assert state.best_step == 6
    shown = [v["loss"] for _, split, v in recorder.episodes_by_step if split == "val"]
    means = [np.mean(losses) for losses in shown]
    assert np.argmin(means) == 2 and len(means) == 5
    assert state.best_score == pytest.approx(-means[2])
    assert checkpoints(tmp_path) == [6, 10]
    at_six = load_checkpoint(tmp_path / "checkpoints" / "step-00000006")["meta"]
    for part in ("init", "hyper"):
        for name, weight in state.best[part].items():
            assert torch.equal(weight, at_six[part][name])
            assert not torch.equal(weight, state.meta[part][name])
    fresh = Manifest(CurveEpisodes(Sinusoid(), 5, 5), "val", 3)
    assert evaluate(state.algo, state.best, fresh).score == pytest.approx(state.best_score)
    assert evaluate(state.algo, state.meta, fresh).score != pytest.approx(
        state.best_score, rel=1e-4
    )


def test_equal_scores_keep_the_earlier_weights(tmp_path) -> None:
    """Targets so far off that every score is the same number."""
    errors = with_errors(1e18, 1e18, 1e18)
    state, _ = trained(tmp_path, validation=errors, steps=6, validate_every=2)
    assert state.best_step == 2


def test_validation_does_not_touch_training(tmp_path) -> None:
    often, _ = trained(tmp_path / "often", steps=6, validate_every=1)
    seldom, _ = trained(tmp_path / "seldom", steps=6, validate_every=6)
    left, right = flat(often), flat(seldom)
    for name in left:
        if not name.startswith("best/"):
            assert torch.equal(left[name], right[name]), name


def test_patience(tmp_path) -> None:
    """Best at step 4, then two validations without a new best."""
    errors = (20.0, 0.0, 30.0, 30.0, 0.0)
    settings = {"steps": 20, "validate_every": 2, "checkpoint_every": 3, "patience": 2}
    state, done = trained(tmp_path, validation=with_errors(*errors), **settings)
    assert done
    assert (state.step, state.best_step) == (8, 4)
    assert checkpoints(tmp_path)[-1] == 8
    recorder = Recorder()
    again, done = trained(tmp_path, (recorder,), validation=with_errors(), **settings)
    assert done and not recorder.scalars_by_step
    same(again, state)


def test_a_new_best_renews_the_patience(tmp_path) -> None:
    errors = (50.0, 60.0, 40.0, 60.0, 30.0, 60.0, 20.0)
    settings = {"steps": 7, "validate_every": 1, "patience": 2}
    state, _ = trained(tmp_path, validation=with_errors(*errors), **settings)
    assert (state.step, state.best_step) == (7, 7)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_a_gradient_that_is_not_finite(tmp_path, value) -> None:
    def change(call, episodes):
        return episodes.map(lambda t: t * value) if call == 5 else episodes

    recorder = Recorder()
    with pytest.raises(UsageError) as caught:
        trained(tmp_path, (recorder,), train=Rigged(change), steps=9, checkpoint_every=2)
    assert str(caught.value) == (
        "the meta-gradient is not finite at step 5; lower inner.rate or outer.optimizer.lr, "
        "or set training.clip_norm (earlier checkpoints are kept)"
    )
    assert [step for step, _ in recorder.scalars_by_step] == [1, 2, 3, 4]
    assert checkpoints(tmp_path) == [2, 4]
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None and saved["step"] == 4
    assert all(t.isfinite().all() for t in saved["meta"]["init"].values())
    # With the cause gone, the same folder goes on.
    state, _ = trained(tmp_path, steps=9, checkpoint_every=2)
    want, _ = trained(tmp_path / "whole", steps=9, checkpoint_every=2)
    same(state, want)


class Terminate(Recorder):
    """Sends this process SIGTERM in the middle of a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def scalars(self, step, values) -> None:
        super().scalars(step, values)
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_sigterm_ends_a_run_between_two_steps(tmp_path, at) -> None:
    settings = {"steps": 6, "validate_every": 3, "checkpoint_every": 4}
    before = signal.getsignal(signal.SIGTERM)
    stopped, done = trained(tmp_path / "stopped", sinks=(Terminate(at),), **settings)
    assert not done and stopped.step == at
    assert checkpoints(tmp_path / "stopped")[-1] == at
    assert signal.getsignal(signal.SIGTERM) is before
    state, done = trained(tmp_path / "stopped", **settings)
    assert done
    same(state, trained(tmp_path / "whole", **settings)[0])


def test_sigterm_in_the_last_step_is_heard_and_the_test_is_left(tmp_path) -> None:
    state, done = trained(tmp_path / "stopped", sinks=(Terminate(6),), steps=6)
    assert not done and state.step == 6
    state, done = trained(tmp_path / "stopped", steps=6)
    assert done
    same(state, trained(tmp_path / "whole", steps=6)[0])


def slow(seconds: float) -> Rigged:
    """Training episodes that take so long to make."""

    def change(call, episodes):
        time.sleep(seconds)
        return episodes

    return Rigged(change)


def test_a_clock_ends_a_run_as_a_last_step_does(tmp_path) -> None:
    train, recorder = slow(0.1), Recorder()
    limits = {"steps": 1000, "validate_every": 1000, "checkpoint_every": 1000, "seconds": 0.35}
    state, done = trained(tmp_path, (recorder,), train=train, **limits)
    # The fourth step is the first that ends past the limit, or an earlier one on a busy machine.
    assert done and 1 <= state.step <= 4 and state.seconds >= 0.35
    assert state.best_step == state.step and state.best_score is not None
    assert [step for step, split, _ in recorder.episodes_by_step if split == "val"] == [state.step]
    assert checkpoints(tmp_path) == [state.step]
    again, done = trained(tmp_path, train=train, **limits)
    assert done and again.step == state.step


def test_a_resumed_run_keeps_the_seconds_that_it_has_used(tmp_path) -> None:
    train = slow(0.1)
    first, _ = trained(tmp_path, train=train, steps=3, validate_every=1000)
    assert first.seconds >= 0.3
    limits = {"steps": 1000, "validate_every": 1000, "seconds": first.seconds + 0.15}
    more, _ = trained(tmp_path, train=train, **limits)
    assert 4 <= more.step <= 5


def test_a_first_step_is_always_taken(tmp_path) -> None:
    state, done = trained(tmp_path, steps=1000, seconds=1e-9)
    assert done and state.step == 1 and checkpoints(tmp_path) == [1]
