"""`batching=auto` measures, keeps what it found, and changes nothing else."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn

from metalearn.algorithms import MAML
from metalearn.backbones import MLP
from metalearn.engine import autotune as auto
from metalearn.engine import cuda_graph as capture
from metalearn.engine import timing as stopwatch
from metalearn.engine.plan import Plan, parse
from metalearn.gradients import Adjoint
from tests.tasks import apart, classification, network


@dataclass(frozen=True)
class Counted:
    """Adjoint that tells which batchings it was called with."""

    batching: str = "auto"
    calls: ClassVar[list[str]] = []
    hessian_products: ClassVar[bool] = True

    def __call__(self, algo, meta, episodes):
        self.calls.append(self.batching)
        return Adjoint(batching=self.batching)(algo, meta, episodes)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    forget(monkeypatch)
    Counted.calls.clear()


def forget(monkeypatch) -> None:
    """As in another process."""
    monkeypatch.setattr(auto, "_choices", {})
    monkeypatch.setattr(auto, "_settled", WeakKeyDictionary())


class Clock:
    """Moves by what is slept alone: other programs on the machine do not lengthen a reading."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def problem(steps: int = 2):
    algo = MAML(network(lambda: MLP(4, 3, (8,))), steps=steps)
    return algo, algo.init(), classification(tasks=4, shape=(4,))


def test_the_fastest_of_what_was_timed(tmp_path):
    settled, choice = auto.settle(Counted(), *problem(), coming=8)
    assert set(choice.seconds) >= {"loop", "vmap", "loop+forward"}
    assert set(Counted.calls) == set(choice.seconds)
    assert choice.seconds[settled.batching] == min(choice.seconds.values())
    (kept,) = (tmp_path / "plans").iterdir()
    assert json.loads(kept.read_text())["plan"] == settled.batching
    assert str(choice).startswith(f"{settled.batching}, ")


def test_a_few_tasks_are_not_compiled_for():
    _, choice = auto.settle(Counted(), *problem(), coming=8)
    plans = [parse(name) for name in choice.seconds]
    assert not any(plan.compile for plan in plans if plan)


def test_no_forward_products_where_there_is_one_step():
    _, choice = auto.settle(Counted(), *problem(steps=1), coming=8)
    assert "loop+forward" not in choice.seconds


def test_the_same_question_is_not_measured_twice(monkeypatch):
    algo, meta, episodes = problem()
    settled, choice = auto.settle(Counted(), algo, meta, episodes, coming=8)
    Counted.calls.clear()
    assert auto.settle(Counted(), algo, meta, episodes, coming=8) == (settled, choice)
    forget(monkeypatch)
    assert auto.settle(Counted(), algo, meta, episodes, coming=8) == (settled, choice)
    assert Counted.calls == []
    other = classification(tasks=3, shape=(4,))
    auto.settle(Counted(), algo, meta, other, coming=8)
    assert Counted.calls


def test_a_damaged_file_is_measured_anew(tmp_path, monkeypatch):
    auto.settle(Counted(), *problem(), coming=8)
    (kept,) = (tmp_path / "plans").iterdir()
    kept.write_text("{")
    forget(monkeypatch)
    Counted.calls.clear()
    auto.settle(Counted(), *problem(), coming=8)
    assert Counted.calls and json.loads(kept.read_text())


def test_what_would_not_fit_is_passed_over(monkeypatch):
    monkeypatch.setattr(stopwatch, "free_memory_bytes", lambda device: 0)
    monkeypatch.setattr(stopwatch, "peak_memory_bytes", lambda device: 2**40)
    settled, choice = auto.settle(Counted(), *problem(), coming=8)
    assert choice.seconds["vmap"] == float("inf")
    assert parse(settled.batching).tasks is None


def test_what_fails_everywhere_says_why():
    algo, meta, episodes = problem()
    wrong = episodes.map(lambda t: t[..., :2] if t.is_floating_point() else t)
    with pytest.raises(RuntimeError, match="shape"):
        auto.settle(Counted(), algo, meta, wrong, coming=8)


@pytest.mark.parametrize(
    "compiled_loop, small, tried",
    [(0.002, False, False), (0.006, False, True), (0.002, True, True)],
    ids=["far behind", "near", "a small network"],
)
def test_tasks_at_once_are_compiled_where_that_may_pay(clock, compiled_loop, small, tried):
    seconds = {"loop": 0.008, "vmap": 0.004, "loop+compile": compiled_loop}

    def trial(plan: Plan, tasks: int) -> Callable[[], None]:
        return partial(clock.sleep, seconds.get(str(plan), 0.02) * tasks)

    # The tests run on one thread, where the loop itself is compiled.
    work = auto._Work(steps=1, tensors=8, coming=None)
    choice = auto._measure(trial, 2, torch.device("cpu"), False, small, work)
    assert ("vmap+compile+whole" in choice.seconds) == tried


def test_a_plan_is_judged_by_what_its_runs_take_together(clock):
    waits = {"loop": [0.004], "vmap": [0.001, 0.012]}  # the second is now and then the fastest

    def trial(plan: Plan, tasks: int) -> Callable[[], None]:
        turns = itertools.cycle(waits.get(str(plan), [0.03]))
        return lambda: clock.sleep(next(turns))

    few = auto._Work(steps=1, tensors=8, coming=8)
    choice = auto._measure(trial, 2, torch.device("cpu"), False, False, few)
    assert str(choice.plan) == "loop"


def test_more_layers_take_more_work_to_be_worth_compiling():
    assert auto._Work(1, 18, coming=130).worth_compiling(1.0)
    assert not auto._Work(1, 150, coming=130).worth_compiling(1.0)
    assert auto._Work(1, 150, coming=1300).worth_compiling(1.0)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_much_work_is_compiled_for():
    algo = MAML(network(lambda: nn.Linear(4, 3)), steps=1)
    episodes = classification(tasks=2, shape=(4,))
    _, choice = auto.settle(Adjoint("auto"), algo, algo.init(), episodes)
    assert {"loop+compile"} <= set(choice.seconds)
    got, _ = Adjoint("loop+compile")(algo, algo.init(), episodes)
    assert apart(got, Adjoint()(algo, algo.init(), episodes)[0]) < 1e-12


def test_neither_the_gradient_nor_what_is_drawn_changes(monkeypatch):
    monkeypatch.setattr(auto, "_WORTH_COMPILING", float("inf"))
    algo, meta, episodes = problem()
    before = torch.random.get_rng_state()
    got, _ = Adjoint(batching="auto")(algo, meta, episodes)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert apart(got, Adjoint()(algo, meta, episodes)[0]) < 1e-12


def test_other_settings_are_other_questions(tmp_path):
    algo, meta, episodes = problem()
    strategy = Adjoint(batching="auto")
    auto.settle(strategy, algo, meta, episodes, coming=8)
    auto.settle(dataclasses.replace(strategy, precision="bf16"), algo, meta, episodes, coming=8)
    assert len(list((tmp_path / "plans").iterdir())) == 2


def test_tasks_of_unequal_size_are_not_measured(tmp_path):
    algo, meta, episodes = problem()
    weight = torch.ones(episodes.support.y.shape)
    padded = episodes._replace(support=episodes.support._replace(weight=weight))
    settled, choice = auto.settle(Counted(), algo, meta, padded)
    assert settled.batching == "loop" and not choice.seconds and not Counted.calls
    assert not (tmp_path / "plans").exists()


def test_what_was_captured_on_trial_is_forgotten():
    owner, *_ = problem()
    capture._graphs[owner] = {"of before": None}
    with pytest.raises(RuntimeError), capture.passing(owner):
        capture._graphs[owner]["on trial"] = None
        raise RuntimeError("out of memory")
    assert list(capture._graphs[owner]) == ["of before"]
