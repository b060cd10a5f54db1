"""A long evaluation in compiled pieces: the same values, and one rule that no clock moves."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Sequential, Tanh

from metalearn import Batch, Episodes, evaluate
from metalearn.algorithms import ANIL, MAML, MAMLpp, ProtoNet
from metalearn.backbones import MLP
from metalearn.engine import Engine
from metalearn.engine.task import tasks_of
from metalearn.evaluation.running import _worth_compiling
from metalearn.inner import lslr, momentum, sgd
from tests.tasks import network

MANY = 10**6  # episodes to come, of which compiling is worth it for any network


def episodes(tasks: int = 5, weighted: bool = False) -> Episodes:
    draw = torch.Generator().manual_seed(0)
    parts = []
    for images in (6, 9):
        y = torch.arange(3).repeat(images // 3).expand(tasks, images).contiguous()
        weight = torch.ones(tasks, images) if weighted else None
        parts.append(Batch(torch.randn(tasks, images, 16, generator=draw), y, weight))
    return Episodes(*parts)


def mlp(head: int | None = 3) -> torch.nn.Module:
    return network(lambda: MLP(16, head, (8,)), dtype=torch.float32)


def normed() -> torch.nn.Module:
    parts = Linear(16, 8), BatchNorm1d(8), Tanh(), Linear(8, 3)
    return network(lambda: Sequential(*parts), dtype=torch.float32)


def pieces(engine: Engine) -> int:
    """How many pieces it has compiled."""
    return sum(len(made.compiled) for made in engine._made.values())


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For tasks side by side."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("algo", "at", "count"),
    [
        # An inner step, a pass of the queries, and where the head alone adapts its features.
        pytest.param(ANIL(mlp(), 3, lslr(0.3)), (0, 3), 3, id="anil", marks=pytest.mark.slow),
        pytest.param(MAML(mlp(), 2, momentum(0.3)), (1, 2, 4), 2, id="maml"),
        pytest.param(ProtoNet(mlp(None)), (0,), 1, id="protonet", marks=pytest.mark.slow),
        # Norms and rates of each step, and steps beyond those that were learned.
        pytest.param(MAMLpp(normed(), 2), (0, 4), 2, id="mamlpp", marks=pytest.mark.slow),
    ],
)
def test_compiled_it_gives_the_values_of_the_loop(algo, at, count, two_threads) -> None:
    meta, given, engine = algo.init(), episodes(), Engine()
    plain = evaluate(algo, meta, given, engine=Engine("loop"), at=at)
    for _ in range(2):
        report = evaluate(algo, meta, given, engine=engine, at=at, coming=MANY)
        assert pieces(engine) == count
        for name, values in plain.by_step.items():
            np.testing.assert_allclose(report.by_step[name], values, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True, eq=False)
class Looking(MAML):
    """Looks at its loss, which no compiler can."""

    def outer_loss(self, meta, fast, query):
        loss, metrics = super().outer_loss(meta, fast, query)
        return loss, {**metrics, "easy": torch.tensor(1.0 if loss.item() < 1.12 else 0.0)}


def test_what_cannot_be_compiled_is_measured_as_it_stands() -> None:
    algo = Looking(mlp(), 2, sgd(0.3))
    meta, engine = algo.init(), Engine()
    report = evaluate(algo, meta, episodes(), engine=engine, coming=MANY)
    plain = evaluate(algo, meta, episodes(), engine=Engine("loop"))
    easy = plain.by_step["easy"]
    assert (
        np.array_equal(easy, plain.by_step["loss"] < 1.12) and 0 < easy.mean() < 1
    )  # both are seen
    for name, values in plain.by_step.items():
        assert np.array_equal(report.by_step[name], values), name


@pytest.mark.parametrize(
    ("engine", "given", "coming"),
    [
        (Engine("loop"), episodes(), MANY),  # as asked
        (Engine(), episodes(weighted=True), MANY),  # of unequal size: other shapes each time
        (Engine(), episodes(), None),  # five tasks
        (Engine("vmap"), episodes(), MANY),
    ],
    ids=["loop", "padded", "few", "vmap"],
)
def test_what_is_not_compiled(engine, given, coming) -> None:
    algo = MAML(mlp(), 2, sgd(0.3))
    evaluate(algo, algo.init(), given, engine=engine, coming=coming)
    assert pieces(engine) == 0


@dataclass(frozen=True, eq=False)
class Noisy(MAML):
    """Its start is drawn anew for every task."""

    def begin(self, meta, given):
        fast = super().begin(meta, given)
        return {name: weight + 0.1 * torch.randn_like(weight) for name, weight in fast.items()}


def test_the_rule_counts_and_knows_what_is_random() -> None:
    module = mlp()

    def worth(algo: MAML, at: tuple[int, ...], coming: int) -> bool:
        task = tasks_of(algo, episodes()).at(0)
        return _worth_compiling(algo, algo.init(), task, at, None, coming)

    algo = MAML(module, 2, sgd(0.3))
    fewest = next(n for n in (10**p for p in range(7)) if worth(algo, (2,), n))
    assert 100 < fewest < MANY  # seconds of a compiler are worth thousands of such small tasks
    assert worth(algo, (2,), 10 * fewest)  # and more of them, or more steps of fewer
    assert worth(algo, (20,), fewest // 5) and not worth(algo, (2,), fewest // 20)
    state = torch.random.get_rng_state()
    assert not worth(Noisy(module, 2, sgd(0.3)), (2,), MANY)
    assert torch.equal(state, torch.random.get_rng_state())
