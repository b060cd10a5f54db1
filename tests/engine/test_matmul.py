"""Matrix products as compiled code takes them."""

import pytest
import torch
from torch import nn

from metalearn import Batch, Episodes
from metalearn.algorithms import MAML
from metalearn.engine import matmul as products
from metalearn.engine.compiler import Compiled
from metalearn.engine.matmul import large_product, product, small_product
from metalearn.gradients import Adjoint
from metalearn.inner import sgd
from tests.engine.test_lowering import orders, random, same
from tests.tasks import generator, on

# torch's own formulas for forward mode use what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


@pytest.fixture
def slow_mkl(monkeypatch) -> None:
    """As on a processor where MKL runs at half its speed, and for products of any size."""
    monkeypatch.setattr(products, "mkl_at_half_speed", lambda: True)
    monkeypatch.setattr(products, "LARGE", 1)


@pytest.mark.parametrize("shapes", [((3, 4), (4, 5)), ((2, 3, 1), (2, 1, 5))], ids=str)
def test_small_product(shapes) -> None:
    a, b = (random(*shape, seed=i) for i, shape in enumerate(shapes))
    same(orders(small_product, a, b), orders(torch.matmul, a, b))


def test_other_products_stay_as_they_are() -> None:
    by_rows, large = random(20, 20), random(30, 30)
    assert small_product(by_rows, by_rows) is not NotImplemented
    assert small_product(by_rows, by_rows.mT) is NotImplemented
    assert small_product(large, large) is NotImplemented
    half = torch.ones(2, 2, dtype=torch.bfloat16)
    assert small_product(half, half) is NotImplemented


def single(*shape: int, seed: int = 0) -> torch.Tensor:
    return random(*shape, seed=seed).float()


LAYOUTS = {
    "rows": lambda m, n: single(m, n),
    "columns": lambda m, n: single(n, m).mT,
    "one row for all": lambda m, n: single(1, n).expand(m, n),
    "one column for all": lambda m, n: single(m, 1).expand(m, n),
    "every other column": lambda m, n: single(m, 2 * n)[:, ::2],
    "some of the columns": lambda m, n: single(2 * n, m).mT[:, :n],
}


@onednn
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_onednn_takes_any_strides(left, right) -> None:
    for m, k, n in ((32, 24, 40), (1, 24, 40), (32, 1, 40), (32, 24, 1)):
        a, b = LAYOUTS[left](m, k), LAYOUTS[right](k, n)
        want = a.double() @ b.double()
        torch.testing.assert_close(product(a, b).double(), want, rtol=1e-5, atol=1e-4)


@onednn
def test_which_products_are_large(monkeypatch) -> None:
    monkeypatch.setattr(products, "mkl_at_half_speed", lambda: True)
    large = single(100, 100)
    assert large_product(large, large) is not NotImplemented
    assert large_product(large[:99], large) is NotImplemented
    assert large_product(large.double(), large.double()) is NotImplemented
    with monkeypatch.context() as without:
        without.setattr(torch.backends.mkldnn, "enabled", False)
        assert large_product(large, large) is NotImplemented
    monkeypatch.setattr(products, "mkl_at_half_speed", lambda: False)
    assert large_product(large, large) is NotImplemented


@onednn
def test_compiled_products(slow_mkl, monkeypatch) -> None:
    traced = []

    def watched(a, b):
        traced.append((a, b))
        return product(a, b)

    def function(a, b, c):
        rows = torch.addmm(c, a, b).relu()
        wide = rows.sum(0).expand(40, 50).mT
        few = (rows.mT @ c.new_ones(70, 30)).view(-1)  # as rows lie in memory, whatever made it
        return rows, rows.mT @ a, rows @ b.mT, b.mT @ (2 * a).mT, wide @ b, few

    monkeypatch.setattr(products, "product", watched)
    given = single(70, 40), single(40, 50, seed=1), single(50, seed=2)
    compiled = Compiled(function, given)
    assert len(traced) == 6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as called:
        found = compiled(given)
    # By Python it would hold its lock, and tasks in threads would wait for one another.
    assert "metalearn::product" not in {event.key for event in called.key_averages()}
    for got, want in zip(found, function(*(t.double() for t in given)), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@onednn
@pytest.mark.slow
@pytest.mark.parametrize("batching", ["threads", "loop+compile", "vmap+compile"])
def test_a_meta_gradient_by_onednn(slow_mkl, batching, monkeypatch) -> None:
    traced = []
    monkeypatch.setattr(products, "product", lambda *ab: traced.append(ab) or product(*ab))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 3))
    labels = torch.arange(3).repeat(2, 4)
    images = [torch.randn(2, 12, 1, 8, 8, generator=generator(i)) for i in (1, 2)]
    tasks = Episodes(*(Batch(x, labels) for x in images))
    algo = MAML(net, steps=3, rule=sgd(0.1))
    meta = algo.init()
    want, _ = on(Adjoint(), "loop")(algo, meta, tasks)
    got, _ = on(Adjoint(), batching)(algo, meta, tasks)
    assert traced
    for name, value in want["init"].items():
        torch.testing.assert_close(got["init"][name], value, rtol=1e-4, atol=1e-6)
