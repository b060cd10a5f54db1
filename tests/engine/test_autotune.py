"""`batching=auto` measures, keeps what it found, and changes nothing else."""

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

from metalearn.algorithms import MAML
from metalearn.algorithms.losses import label_smoothed
from metalearn.backbones import MLP
from metalearn.engine import Engine, autotune, timing
from metalearn.engine.cuda_graph import forgetting
from metalearn.engine.plan import Plan, parse
from metalearn.engine.question import question
from metalearn.gradients import Adjoint, Truncated, Unroll
from metalearn.inner import momentum, sgd
from metalearn.types import Kind
from tests.tasks import apart, classification, network, on


@dataclass(frozen=True)
class Counted:
    """Adjoint that counts the tasks, or parts of them, that it was given."""

    calls: ClassVar[list[int]] = []
    kind: ClassVar[Kind] = "exact"
    hessian_products: ClassVar[bool] = True

    def task(self, algo, meta, task, run):
        self.calls.append(1)
        return Adjoint().task(algo, meta, task, run)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    Counted.calls.clear()


class Clock:
    """A time that only `sleep` moves: what else the machine does shows in no reading."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def problem(steps: int = 2):
    algo = MAML(network(lambda: MLP(4, 3, (8,))), steps=steps)
    return algo, algo.init(), classification(tasks=4, shape=(4,))


def tuned(*asked, engine: Engine | None = None, coming: int | None = 8):
    return (engine or Engine()).autotune(Counted(), *asked, coming=coming)


def test_the_fastest_of_what_was_timed(tmp_path):
    answer = tuned(*problem())
    assert set(answer.seconds) >= {"loop", "vmap", "loop+forward_over_reverse"}
    assert answer.seconds[str(answer.plan)] == min(answer.seconds.values())
    (kept,) = (tmp_path / "plans").iterdir()
    assert json.loads(kept.read_text())["plan"] == str(answer.plan)
    assert str(answer).startswith(f"{answer.plan}, ")


def test_an_engine_explains_what_was_tried_and_why_not():
    engine = Engine()
    assert engine.explain() == "batching=auto: nothing was measured"
    answer = tuned(*problem(), engine=engine)
    head, *lines = engine.explain().splitlines()
    assert head == f"Counted of MAML: {answer.plan}"
    tried = [line.split(":")[0].strip() for line in lines]
    assert tried[: len(answer.seconds)] == sorted(answer.seconds, key=answer.seconds.get)
    assert lines[-1] == "  +compile: not tried: the work to come is shorter than compiling"


def test_a_few_tasks_are_not_compiled_for():
    plans = [parse(name) for name in tuned(*problem()).seconds]
    assert not any(plan.compile for plan in plans if plan)


def test_no_forward_products_where_there_is_one_step():
    assert "loop+forward_over_reverse" not in tuned(*problem(steps=1)).seconds


def test_the_same_question_is_not_measured_twice():
    algo, meta, episodes = problem()
    engine = Engine()
    answer = tuned(algo, meta, episodes, engine=engine)
    Counted.calls.clear()
    assert tuned(algo, meta, episodes, engine=engine) is answer
    assert tuned(algo, meta, episodes) == answer  # of another process: from the file
    assert Counted.calls == []
    tuned(algo, meta, classification(tasks=3, shape=(4,)))
    assert Counted.calls


def test_a_damaged_file_is_measured_anew(tmp_path):
    tuned(*problem())
    (kept,) = (tmp_path / "plans").iterdir()
    kept.write_text("{")
    Counted.calls.clear()
    tuned(*problem())
    assert Counted.calls and json.loads(kept.read_text())


def test_what_would_not_fit_is_passed_over(monkeypatch):
    monkeypatch.setattr(timing, "free_memory_bytes", lambda device: 0)
    monkeypatch.setattr(timing, "peak_memory_bytes", lambda device: 2**40)
    answer = tuned(*problem())
    assert answer.seconds["vmap"] == float("inf")
    assert answer.notes["vmap"].startswith("would need ")
    assert answer.plan.tasks is None


def test_what_fails_everywhere_says_why():
    algo, meta, episodes = problem()
    wrong = episodes.map(lambda t: t[..., :2] if t.is_floating_point() else t)
    with pytest.raises(RuntimeError, match="shape"):
        tuned(algo, meta, wrong)


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
    work = autotune._Work(steps=1, tensors=8, coming=None)
    answer = autotune._measure(trial, 2, torch.device("cpu"), False, small, work)
    assert ("vmap+compile+whole" in answer.seconds) == tried


def test_a_plan_is_judged_by_what_its_runs_take_together(clock):
    waits = {"loop": [0.004], "vmap": [0.001, 0.012]}  # the second is now and then the fastest

    def trial(plan: Plan, tasks: int) -> Callable[[], None]:
        turns = itertools.cycle(waits.get(str(plan), [0.03]))
        return lambda: clock.sleep(next(turns))

    few = autotune._Work(steps=1, tensors=8, coming=8)
    answer = autotune._measure(trial, 2, torch.device("cpu"), False, False, few)
    assert str(answer.plan) == "loop"


def test_more_layers_take_more_work_to_be_worth_compiling():
    assert autotune._Work(1, 18, coming=130).worth_compiling(1.0)
    assert not autotune._Work(1, 150, coming=130).worth_compiling(1.0)
    assert autotune._Work(1, 150, coming=1300).worth_compiling(1.0)


def test_more_operations_take_more_work_to_be_worth_compiling():
    """Few tensors, many operations, as of a group norm written out."""
    assert autotune._Work(1, 8, coming=200, operations=1000).worth_compiling(1.0)
    assert not autotune._Work(1, 8, coming=200, operations=10_000).worth_compiling(1.0)
    # Of many steps the pieces alone are compiled, and each once.
    many = autotune._Work(20, 8, coming=200, operations=20_000)
    assert many.worth_compiling(1.0) and not many.worth_whole(1.0)


def test_nothing_more_is_compiled_where_what_was_took_too_long(clock):
    """140 s of work are worth a try; the first takes 90, and two of those are more than all."""
    compiled = set()

    def trial(plan: Plan, tasks: int) -> Callable[[], None]:
        def step() -> None:
            if plan.compile and str(plan) not in compiled:
                compiled.add(str(plan))
                clock.sleep(90)
            clock.sleep(tasks * (0.1 if plan.tasks is None else 0.05))

        return step

    work = autotune._Work(steps=1, tensors=8, coming=2800)
    answer = autotune._measure(trial, 2, torch.device("cpu"), False, True, work)
    assert compiled == {"loop+compile"}
    assert answer.notes["vmap+compile"] == "not tried: those before took too long to compile"
    assert str(answer.plan) == "vmap"


def test_what_an_engine_is_called_for_is_compiled_once_as_much_is_done(monkeypatch):
    """An engine does not know what is to come: it compiles when compiling would have been worth
    it for what was, and keeps that answer for the next process."""
    asked: list[int | None] = []

    def measured(trial, tasks, device, forward, small, work, alone):
        asked.append(work.coming)
        few = work.coming < 12
        plan = Plan() if few else Plan(tasks=0)
        return autotune.Autotuned(plan, {str(plan): 1.0}, {}, 10.0 if few else None)

    monkeypatch.setattr(autotune, "_measure", measured)
    algo, meta, episodes = problem()  # 4 tasks
    engine = Engine()
    plans = [str(engine.plan(Counted(), algo, meta, episodes)) for _ in range(5)]
    assert plans == ["loop", "loop", "vmap", "vmap", "vmap"]
    assert asked == [4, 1001]
    assert str(Engine().plan(Counted(), algo, meta, episodes)) == "vmap" and len(asked) == 2
    # What was found for a few is no answer for more than compiling would be worth.
    for coming, times in ((10, 2), (11, 3), (11, 4), (None, 4)):
        tuned(algo, meta, episodes, coming=coming)
        assert len(asked) == times


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_much_work_is_compiled_for():
    algo = MAML(network(lambda: nn.Linear(4, 3)), steps=1)
    episodes = classification(tasks=2, shape=(4,))
    answer = Engine().autotune(Adjoint(), algo, algo.init(), episodes)
    assert {"loop+compile"} <= set(answer.seconds)
    got, _ = on(Adjoint(), "loop+compile")(algo, algo.init(), episodes)
    assert apart(got, Adjoint()(algo, algo.init(), episodes)[0]) < 1e-12


def test_neither_the_gradient_nor_what_is_drawn_changes(monkeypatch):
    monkeypatch.setattr(autotune, "_WORTH_COMPILING", float("inf"))
    algo, meta, episodes = problem()
    before = torch.random.get_rng_state()
    got, _ = on(Adjoint(), "auto")(algo, meta, episodes)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert apart(got, Adjoint()(algo, meta, episodes)[0]) < 1e-12


def other_questions() -> dict:
    """What differs from `problem` in one thing each."""
    algo, meta, episodes = problem()
    net = algo.module
    names = list(meta["init"])
    algorithms = {
        "what adapts": MAML(net, 2, adapting=names[-2:]),
        "another part adapts": MAML(net, 2, adapting=names[:2]),
        "the rule": MAML(net, 2, momentum(0.1)),
        "its rate": MAML(net, 2, sgd(0.2)),
        "the loss": MAML(net, 2, loss=label_smoothed),
        "the loss's option": MAML(net, 2, loss=partial(label_smoothed, smoothing=0.2)),
        "a proximal term": MAML(net, 2, proximal=1.0),
        "the steps": MAML(net, 3),
        "the class": type("Own", (MAML,), {})(net, 2),
    }
    return {name: (algo, meta, episodes) for name, algo in algorithms.items()} | {
        "the shapes": (algo, meta, classification(tasks=3, shape=(4,))),
        "the queries": (algo, meta, classification(tasks=4, shape=(4,), queries=7)),
    }


def test_every_thing_that_an_answer_depends_on_is_asked(monkeypatch):
    def asked(*given, strategy=None, options=("fp32", "none")):
        return question(strategy or Adjoint(), *given, options, True)

    usual = asked(*problem())
    assert asked(*problem()) == usual
    found = {name: asked(*given) for name, given in other_questions().items()}
    found["precision"] = asked(*problem(), options=("bf16", "none"))
    found["capture"] = asked(*problem(), options=("fp32", "graph"))
    found["strategy"] = asked(*problem(), strategy=Unroll())
    found["an option of it"] = asked(*problem(), strategy=Truncated(1))
    found["another option of it"] = asked(*problem(), strategy=Truncated(2))
    monkeypatch.setattr(
        sys.modules["metalearn.engine.question"], "processor_model", lambda: "another"
    )
    found["processor"] = asked(*problem())
    assert len({usual, *found.values()}) == len(found) + 1, found


def test_tasks_of_unequal_size_are_not_measured(tmp_path):
    algo, meta, episodes = problem()
    weight = torch.ones(episodes.support.y.shape)
    padded = episodes._replace(support=episodes.support._replace(weight=weight))
    answer = tuned(algo, meta, padded, coming=None)
    assert str(answer.plan) == "loop" and not answer.seconds and not Counted.calls
    assert answer.lines() == ["  tasks of unequal size: not measured"]
    assert not (tmp_path / "plans").exists()


def test_what_was_captured_on_trial_is_forgotten():
    graphs = {"of before": None}
    with pytest.raises(RuntimeError), forgetting(graphs):
        graphs["on trial"] = None
        raise RuntimeError("out of memory")
    assert list(graphs) == ["of before"]
