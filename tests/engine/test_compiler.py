"""Compiled pieces equal the plain float64 task loop too. A compilation takes seconds: few cases."""

import shutil
from contextlib import contextmanager

import pytest
import torch
import torch._inductor.codecache
from torch import nn
from torch._dynamo.utils import counters

from metalearn.algorithms import MAML
from metalearn.engine import compiler
from metalearn.engine.compiler import Compiled
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Implicit, Unroll
from metalearn.inner import lslr, sgd
from tests.gradients import reference
from tests.tasks import apart, classification, generator, network, on, randomised

compiles = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler is there"
)
# What inductor brings with it, and uses, torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


STEPS = 2


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 9, 3, padding=1),  # so many filters, or its norm is not that of stem.py
        nn.BatchNorm2d(9, track_running_stats=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@compiles
@pytest.mark.parametrize(
    "strategy, batching, build, shape",
    [
        pytest.param(Adjoint, "loop+compile", layers, (4,), marks=pytest.mark.slow),
        pytest.param(
            Adjoint,
            "loop+compile",
            convolutions,
            (1, 5, 5),
            marks=pytest.mark.slow,  # a minute
        ),
        (Adjoint, "threads", layers, (4,)),
        pytest.param(Unroll, "vmap+compile", layers, (4,), marks=pytest.mark.slow),
        pytest.param(Checkpointed, "loop+compile+whole", layers, (4,), marks=pytest.mark.slow),
        pytest.param(Adjoint, "vmap+compile+whole+serial", layers, (4,), marks=pytest.mark.slow),
    ],
    ids=[
        "adjoint-loop",
        "convolutions",
        "adjoint-threads",
        "unroll-vmap",
        "checkpointed-whole",
        "at-once",
    ],
)
def test_exact(strategy, batching, build, shape):
    module, episodes = network(build), classification(shape=shape)
    algo = MAML(module, STEPS, lslr(0.1))
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    want = reference.meta_gradient(
        module, meta["hyper"], episodes, STEPS, rates=reference.per_layer_and_step
    )
    with threads(2 if batching == "threads" else 1):
        for _ in range(2):  # as compiled just now, and as kept
            got, metrics = on(strategy(), batching)(algo, meta, episodes)
            assert apart(got, want) < 1e-10
        assert torch.get_num_threads() == (2 if batching == "threads" else 1)
    measured = on(strategy(), "loop")(algo, meta, episodes)[1]
    torch.testing.assert_close(metrics, measured, rtol=1e-10, atol=0)


def deep(*more: nn.Module) -> nn.Module:
    square = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    return nn.Sequential(square[0], nn.Tanh(), square[1], *more, nn.Linear(4, 3))


def as_uncompiled(strategy, algo, meta, episodes):
    torch.manual_seed(0)  # of the dropout masks
    want, _ = strategy.args[0](algo, meta, episodes)
    for _ in range(2):  # as compiled just now, and as kept
        torch.manual_seed(0)
        got, _ = strategy(algo, meta, episodes)
        assert apart(got, want) < 1e-10


@compiles
@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(on(FirstOrder(), "loop+compile"), marks=pytest.mark.slow),
        pytest.param(on(Adjoint(), "vmap+compile+whole"), marks=pytest.mark.slow),
    ],
    ids=["loop", "at-once"],
)
def test_what_a_later_call_may_bring(strategy):
    algo, episodes = MAML(network(deep), 1, sgd(0.1)), classification(shape=(4,))
    meta = algo.init()
    as_uncompiled(strategy, algo, meta, episodes)
    # Two matrices of one shape, in the order of a file: each was taken for the other.
    first, second, *others = meta["init"]
    swapped = {name: meta["init"][name] for name in (second, first, *others)}
    as_uncompiled(strategy, algo, {**meta, "init": swapped}, episodes)
    turned = {n: t.mT.contiguous().mT if t.ndim == 2 else t for n, t in meta["init"].items()}
    elsewhere = episodes.map(lambda t: t.transpose(0, 1).contiguous().transpose(0, 1))
    as_uncompiled(strategy, algo, {**meta, "init": turned}, elsewhere)


@compiles
@pytest.mark.slow
def test_dropout_and_none():
    algo = MAML(network(lambda: deep(nn.Dropout(0.5))), 1, sgd(0.1))
    meta, episodes = algo.init(), classification(shape=(4,))
    strategy = on(Adjoint(), "vmap+compile+whole")
    as_uncompiled(strategy, algo, meta, episodes)
    with algo.net.evaluating():
        as_uncompiled(strategy, algo, meta, episodes)
    algo.net.module.get_submodule("3").eval()  # this layer alone
    as_uncompiled(strategy, algo, meta, episodes)


WRITES = {
    "add": lambda x, place, y: x.index_add(0, place, y),
    "copy": lambda x, place, y: x.index_copy(0, place, y),
    "fill": lambda x, place, y: x.index_fill(0, place, 2.0),
    "put": lambda x, place, y: x.index_put((place,), y, accumulate=True),
    "select": lambda x, place, y: x.select_scatter(y[0], 0, 1),
    "slice": lambda x, place, y: x.slice_scatter(y, 0, 1, 2),
    "diagonal": lambda x, place, y: x.diagonal_scatter(y[0]),
    "scatter-add": lambda x, place, y: x.scatter_add(0, place.view(1, 1).expand(1, 5), y),
}


@compiles
def test_rows_that_share_memory_are_written_apart():
    place, y = torch.tensor([1]), torch.randn(1, 5, generator=generator())

    def written(place, y):
        return {n: f(torch.zeros_like(y[0]).expand(5, 5), place, y) for n, f in WRITES.items()}

    code = Compiled(written, [place, y])
    torch.testing.assert_close(code([place, y]), written(place, y))


@compiles
@pytest.mark.slow
def test_a_large_piece_is_compiled_in_two_parts(monkeypatch):
    monkeypatch.setattr(compiler, "_LARGE", 10)
    algo, episodes = MAML(network(layers), 1, sgd(0.1)), classification(shape=(4,))
    want, _ = Adjoint()(algo, algo.init(), episodes)
    got, _ = on(Adjoint(), "vmap+compile+whole")(algo, algo.init(), episodes)
    assert apart(got, want) < 1e-10


@compiles
def test_too_large_a_piece_is_one_line(monkeypatch):
    """Which would be compiled for minutes."""
    monkeypatch.setattr(compiler, "_MOST", 40)
    algo, episodes = MAML(network(layers), STEPS, sgd(0.1)), classification(shape=(4,))
    with pytest.raises(UsageError, match=r"\d+ operations are too many to compile at once; leave"):
        on(Adjoint(), "vmap+compile+whole")(algo, algo.init(), episodes)


@compiles
def test_a_search_that_stops():
    algo = MAML(network(lambda: nn.Linear(4, 3)), 3, sgd(0.1), proximal=1.5)
    meta, episodes = algo.init(), classification(shape=(4,))
    want, _ = on(Implicit("cg", 50, 1e-6), "loop")(algo, meta, episodes)
    got, _ = on(Implicit("cg", 50, 1e-6), "vmap+compile")(algo, meta, episodes)
    assert apart(got, want) < 1e-10


@compiles
def test_a_tensor_given_twice_is_two_inputs():
    a, b = torch.randn(2, 5, generator=generator())
    code = Compiled(lambda x, y: {"difference": x - 2 * y}, [a, a])
    torch.testing.assert_close(code([a, a])["difference"], -a)
    torch.testing.assert_close(code([a, b])["difference"], a - 2 * b)


@compiles
def test_tensors_that_a_function_holds_itself():
    rows, held = torch.randn(2, 3, 5, generator=generator())
    place, y = torch.tensor([1]), torch.randn(3, 5, generator=generator())

    def function(x):
        one = torch.tensor([2.0])  # made in the trace: a constant as well
        return held - x * held, (rows[0].expand(3, 5) * one).index_add(0, place, x[:1]), x / one

    code = Compiled(function, [y])
    for x in (y, y + 1):
        torch.testing.assert_close(code([x]), function(x))


@compiles
def test_outputs_of_their_own_whatever_the_inputs():
    a = torch.randn(5, generator=generator()).requires_grad_()
    code = Compiled(lambda x: (x, x, x.exp().sin()), [a])
    assert len(code.code([a])) == 3  # nothing kept for a way back
    outputs = code([a])
    for got, want in zip(outputs, (a, a, a.exp().sin()), strict=True):
        torch.testing.assert_close(got, want.detach())
        assert not got.requires_grad
    assert len({t.data_ptr() for t in (a, *outputs)}) == 4


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    algo = MAML(network(lambda: nn.Linear(4, 3)))
    for batching in ("loop+compile", "threads", "vmap+compile"):
        with pytest.raises(UsageError, match="needs a C.. compiler, and none is there"):
            on(Unroll(), batching)(algo, algo.init(), classification(shape=(4,)))


def test_machine_code_is_kept_for_the_next_process(tmp_path, monkeypatch):
    """Torch finds it by the graph; as good as new, in a fraction of the time."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.rand(3, 4)

    def made(factor: float) -> tuple[torch.Tensor, int]:
        torch._inductor.codecache.PyCodeCache.cache_clear()  # what only this process remembers
        before = counters["inductor"]["fxgraph_cache_hit"]
        told = Compiled(lambda x: (factor * x).sin().sum(1), [x])([x])
        return told, counters["inductor"]["fxgraph_cache_hit"] - before

    (first, new), (again, kept), (other, another) = made(2.0), made(2.0), made(3.0)
    assert (new, kept, another) == (0, 1, 0)
    assert torch.equal(first, again)
    torch.testing.assert_close(other, (3 * x).sin().sum(1))
