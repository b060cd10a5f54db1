"""What strategies refuse, each in one line that says what to change, and how batchings are read."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from metalearn import gradients
from metalearn.algorithms import MAML, ProtoNet, Reptile
from metalearn.engine.plan import Plan, parse
from metalearn.errors import UsageError
from tests.tasks import classification, network, on

STRATEGIES = [getattr(gradients, name) for name in gradients.__all__]


def algorithm(strategy):
    module = network(lambda: nn.Linear(4, 3))
    if strategy is gradients.Displacement:
        return Reptile(module, steps=1)
    return MAML(module, steps=1, proximal=1.0)


def refused(strategy, algo, episodes=None) -> str:
    episodes = episodes or classification(shape=(4,))
    with pytest.raises(UsageError) as error:
        strategy(algo, algo.init(), episodes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unknown_precision(strategy):
    with pytest.raises(UsageError) as error:
        on(strategy(), precision="bf61")
    line = str(error.value)
    assert line.startswith("precision='bf61' is not known")
    assert line.endswith("use fp32, tf32, bf16, bf16-all, fp16")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("capture", ["graph", "compile", "film"])
def test_captures_that_a_cpu_does_not_have(strategy, capture):
    line = refused(on(strategy(), capture=capture), algorithm(strategy))
    if capture == "film":
        assert line == "capture='film' is not known; use none, graph or compile"
    else:
        assert line == f"capture={capture} needs a CUDA device; use capture=none on a CPU"


PLANS = {
    "loop": Plan(),
    "vmap": Plan(tasks=0),
    "threads": Plan(threads=True, compile=True),
    3: Plan(tasks=3),
    "3": Plan(tasks=3),
    "loop+compile": Plan(compile=True),
    "loop+forward_over_reverse": Plan(forward_over_reverse=True),
    "loop+whole": Plan(whole=True),
    "vmap+im2col": Plan(tasks=0, im2col=True),
    "2+forward_over_reverse": Plan(tasks=2, forward_over_reverse=True),
    "threads+forward_over_reverse": Plan(threads=True, compile=True, forward_over_reverse=True),
    "16+im2col+compile": Plan(tasks=16, compile=True, im2col=True),
    "vmap+compile+whole+serial": Plan(tasks=0, compile=True, whole=True, serial=True),
}


@pytest.mark.parametrize("batching", PLANS)
def test_plans(batching):
    plan = PLANS[batching]
    assert parse(batching) == plan
    assert parse(str(plan)) == plan


def test_plans_of_older_run_folders_are_read():
    assert parse("2+forward+unfold") == Plan(tasks=2, forward_over_reverse=True, im2col=True)


def test_plans_as_text():
    assert parse("auto") is None
    assert str(parse("16+im2col+compile")) == "16+compile+im2col"
    assert str(parse("threads+compile")) == "threads"
    for way in ("loop", "vmap", "5"):
        for options in (
            "",
            "+compile",
            "+forward_over_reverse",
            "+im2col",
            "+compile+forward_over_reverse+im2col+whole",
        ):
            assert str(parse(way + options)) == way + options


UNKNOWN = [
    *("nonsense", "", "+", "+compile", "loop+", "loop+fast", "loop compile", "vmap+vmap"),
    *("auto+compile", "loop+compile+compile", "Loop", "0", "-1", "1.5", "0+compile", "٣+fast"),
    *(0, -1, True, False, 1.5, None, ["loop"]),
]


@pytest.mark.parametrize("batching", UNKNOWN, ids=repr)
def test_unknown_batchings(batching):
    with pytest.raises(UsageError) as error:
        parse(batching)
    line = str(error.value)
    assert line.startswith(f"batching={batching!r} is not known; use auto, or loop, threads, vmap")
    assert "\n" not in line and "+compile, +forward_over_reverse, +im2col" in line


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("batching", ["nonsense", 0, "vmap+fast"])
def test_every_strategy_reads_its_batching(strategy, batching):
    with pytest.raises(UsageError, match=re.escape(repr(batching))):
        on(strategy(), batching)


def test_no_tasks():
    episodes = classification(shape=(4,))
    empty = episodes.map(lambda t: t[:0])
    for batching in ("auto", "loop", 2, "vmap"):
        line = refused(on(gradients.Unroll(), batching), algorithm(gradients.Unroll), empty)
        assert "meta_batch of 1 or more" in line


EXACT = "Adjoint, Unroll, Checkpointed, Annealed"
SURROGATE = "Evolution, Bootstrapped"


@pytest.mark.parametrize(
    "strategy, build, fitting",
    [
        (
            gradients.Displacement(),
            MAML,
            f"{EXACT}, FirstOrder, Truncated, {SURROGATE}",
        ),
        (gradients.Unroll(), Reptile, "Displacement"),
        (gradients.Adjoint(), Reptile, "Displacement"),
        (gradients.FirstOrder(), Reptile, "Displacement"),
        (gradients.Implicit(), Reptile, "Displacement"),
        (gradients.FirstOrder(), ProtoNet, EXACT),
        (gradients.Truncated(2), ProtoNet, EXACT),
        (gradients.Implicit(), ProtoNet, EXACT),
        (gradients.Displacement(), ProtoNet, EXACT),
    ],
)
def test_a_strategy_that_does_not_fit(strategy, build, fitting):
    line = refused(strategy, build(network(lambda: nn.Linear(4, 3))))
    assert line.startswith(f"gradient {type(strategy).__name__} does not fit")
    assert line.endswith(f"use {fitting}")


def test_truncated_refuses_a_negative_number():
    with pytest.raises(UsageError, match="gradient.last=-1 must be 0 or more"):
        gradients.Truncated(-1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_are_values(strategy):
    assert strategy() == strategy()
    assert hash(strategy()) == hash(strategy())
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy().last = 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_history_is_left(strategy):
    algo = algorithm(strategy)
    meta = algo.init()
    meta["init"] = {n: t.requires_grad_() for n, t in meta["init"].items()}
    got, metrics = strategy()(algo, meta, classification(shape=(4,)))
    assert not any(t.requires_grad for t in [*got["init"].values(), *metrics.values()])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("batching", ["loop+whole", "vmap+whole", "2+whole+forward_over_reverse"])
def test_a_task_as_one_piece(strategy, batching):
    algo = algorithm(strategy)
    meta, episodes = algo.init(), classification(shape=(4,))
    torch.manual_seed(0)  # of noise, for a strategy that draws it
    want, measured = on(strategy(), "loop")(algo, meta, episodes)
    torch.manual_seed(0)
    got, metrics = on(strategy(), batching)(algo, meta, episodes)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(metrics, measured, rtol=1e-10, atol=0)
