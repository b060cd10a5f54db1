"""What runs on a CUDA device is what runs on the CPU."""

import pytest
import torch
from torch import nn

from metalearn import Batch, Episodes, adapt, evaluate, tree
from metalearn.algorithms import ANIL, MAML, ProtoNet, Reptile
from metalearn.backbones import Conv4
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Implicit, Truncated, Unroll
from metalearn.gradients import Reptile as Displacement
from metalearn.inner import lslr, meta_sgd, sgd
from tests.tasks import on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]

CASES = {
    "maml": lambda: MAML(Conv4(3, filters=8, size=16), steps=2, rule=sgd(0.1)),
    "maml-support": lambda: MAML(Conv4(3, filters=8, size=16, norm="support"), 2, meta_sgd(0.1)),
    "maml-running": lambda: MAML(Conv4(3, filters=8, size=16, norm="running"), 2, sgd(0.1)),
    "maml-minibatch": lambda: MAML(Conv4(3, filters=8, size=16), 3, sgd(0.1, batch_size=3)),
    "imaml": lambda: MAML(Conv4(3, filters=8, size=16, norm="group"), 3, sgd(0.05), proximal=10.0),
    "dropout": lambda: MAML(nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 3)), 3),
    "anil-lslr": lambda: ANIL(Conv4(3, filters=8, size=16, norm="group"), 2, lslr(0.1)),
    "reptile": lambda: on(
        Reptile(), Conv4(3, filters=8, size=16), precision=3, capture=sgd(0.1, batch_size=3)
    ),
    "protonet": lambda: ProtoNet(Conv4(None, filters=8, size=16), learn_temperature=True),
}


def episodes() -> Episodes:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4, 2)
    images = [torch.rand(4, 6, 1, 16, 16, generator=rng, dtype=torch.float64) for _ in range(2)]
    return Episodes(*(Batch(x, labels) for x in images))


STRATEGIES = [Unroll, Adjoint, Checkpointed, FirstOrder, Truncated, Implicit, Displacement]


def built(case: str, strategy, dtype=torch.float64):
    """The algorithm and its meta, or a skip where the strategy is not defined for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        algo = CASES[case]()
    if strategy.kind not in algo.kinds:
        pytest.skip(f"{case} is not defined for {strategy.__name__}")
    return algo, tree.map_meta(lambda t: t.to(dtype), algo.init())


def seeded(strategy, algo, meta, tasks):
    """Its gradient and metrics with the dropout masks of one seed."""
    torch.manual_seed(3)
    return strategy(algo, meta, tasks)


def on_device(tasks: Episodes, dtype=torch.float64) -> Episodes:
    return tasks.map(lambda t: t.to(dtype).cuda() if t.is_floating_point() else t.cuda())


def flat(gradient) -> torch.Tensor:
    return torch.cat([t.flatten() for part in gradient.values() for t in part.values()])


@pytest.mark.parametrize("capture", ["none", "graph"])
@pytest.mark.parametrize(
    "batching", ["loop", "vmap", 3, "vmap+im2col", "vmap+forward_over_reverse"]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_cpus(case, strategy, batching, capture) -> None:
    algo, meta = built(case, strategy)
    tasks = episodes()
    here, _ = seeded(on(strategy(), "loop"), algo, meta, tasks)
    there, metrics = seeded(
        on(strategy(), batching, capture=capture),
        algo,
        tree.map_meta(lambda t: t.cuda(), meta),
        on_device(tasks),
    )
    assert metrics["loss"].is_cuda
    for part in ("init", "hyper"):
        for name, value in here[part].items():
            torch.testing.assert_close(there[part][name].cpu(), value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("strategy", [Adjoint, Unroll, Implicit])
@pytest.mark.parametrize("batching, capture", [("vmap+compile", "none"), ("vmap", "compile")])
def test_compiled_gradients_equal_the_cpus(batching, capture, strategy) -> None:
    algo, meta = built("imaml", strategy)
    here, _ = on(strategy(), "loop")(algo, meta, episodes())
    there, _ = on(strategy(), batching, capture=capture)(
        algo, tree.map_meta(lambda t: t.cuda(), meta), on_device(episodes())
    )
    torch.testing.assert_close(flat(there).cpu(), flat(here), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("capture", ["graph", "compile"])
def test_names_in_another_order_than_at_first(capture) -> None:
    algo, meta = built("imaml", Adjoint)
    want, _ = on(Adjoint(), "loop")(algo, meta, episodes())
    strategy = on(Adjoint(), "vmap", capture=capture)
    first, second, *_ = (n for n, t in meta["init"].items() if t.shape == (8, 8, 3, 3))
    other = {first: second, second: first}
    for names in (list(meta["init"]), [other.get(n, n) for n in meta["init"]]):
        init = {name: meta["init"][name].cuda() for name in names}
        got, _ = strategy(algo, {**meta, "init": init}, on_device(episodes()))
        for name, value in want["init"].items():
            torch.testing.assert_close(got["init"][name].cpu(), value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("strategy", [Adjoint, Unroll, Checkpointed])
@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize(
    "precision, cosine",
    [("fp32", 0.99999), ("tf32", 0.99), ("bf16", 0.97), ("bf16-all", 0.7), ("fp16", 0.9)],
)
def test_precisions(precision, cosine, batching, strategy) -> None:
    algo, meta = built("maml", strategy)
    want = flat(on(strategy(), "loop")(algo, meta, episodes())[0])
    algo, meta = built("maml", strategy, torch.float32)
    got, _ = on(strategy(), batching, precision=precision)(
        algo, tree.map_meta(lambda t: t.cuda(), meta), on_device(episodes(), torch.float32)
    )
    got = flat(got)
    assert got.dtype == torch.float32
    got = got.double().cpu()
    assert float(got @ want / got.norm() / want.norm()) > cosine


@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_cpus(case) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        algo = CASES[case]()
    meta = tree.map_meta(lambda t: t.double(), algo.init())
    there = tree.map_meta(lambda t: t.cuda(), meta)
    here = evaluate(algo, meta, episodes())
    moved = evaluate(algo, there, episodes(), device="cuda")
    assert abs(here.by_step["loss"] - moved.by_step["loss"]).max() < 1e-9
    one = episodes().map(lambda t: t[0].cuda())
    assert all(t.is_cuda for t in adapt(algo, there, one.support).values())
