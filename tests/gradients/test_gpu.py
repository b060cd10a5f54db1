"""What runs on a CUDA device is what runs on the CPU."""

import pytest
import torch

from metalearn import Batch, Episodes, adapt, evaluate, tree
from metalearn.algorithms import ANIL, MAML, ProtoNet, Reptile
from metalearn.backbones import Conv4
from metalearn.gradients import Adjoint, FirstOrder, Unroll
from metalearn.gradients import Reptile as Displacement
from metalearn.inner import lslr, meta_sgd, sgd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]

CASES = {
    "maml": lambda: MAML(Conv4(3, filters=8, size=16), steps=2, rule=sgd(0.1)),
    "maml-support": lambda: MAML(Conv4(3, filters=8, size=16, norm="support"), 2, meta_sgd(0.1)),
    "maml-minibatch": lambda: MAML(Conv4(3, filters=8, size=16), 3, sgd(0.1, batch_size=3)),
    "anil-lslr": lambda: ANIL(Conv4(3, filters=8, size=16, norm="group"), 2, lslr(0.1)),
    "reptile": lambda: Reptile(Conv4(3, filters=8, size=16), 3, sgd(0.1, batch_size=3)),
    "protonet": lambda: ProtoNet(Conv4(None, filters=8, size=16), learn_temperature=True),
}


def episodes() -> Episodes:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(4, 2)
    images = [torch.rand(4, 6, 1, 16, 16, generator=rng, dtype=torch.float64) for _ in range(2)]
    return Episodes(*(Batch(x, labels) for x in images))


@pytest.mark.parametrize("batching", ["loop", "vmap", 3])
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, FirstOrder, Displacement])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_cpus(case, strategy, batching) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        algo = CASES[case]()
    meta = tree.map_meta(lambda t: t.double(), algo.init())
    if strategy.__name__ not in algo.strategies:
        pytest.skip(f"{case} is not defined for {strategy.__name__}")
    tasks = episodes()
    here, _ = strategy(batching="loop")(algo, meta, tasks)
    there, metrics = strategy(batching=batching)(
        algo, tree.map_meta(lambda t: t.cuda(), meta), tasks.map(lambda t: t.cuda())
    )
    assert metrics["loss"].is_cuda
    for part in ("init", "hyper"):
        for name, value in here[part].items():
            torch.testing.assert_close(there[part][name].cpu(), value, rtol=1e-9, atol=1e-11)


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
