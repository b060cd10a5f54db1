"""One step of every rule by hand, the order of inner minibatches, and rates beyond the last."""

import pytest
import torch
from torch import nn

from metalearn import Batch, adapt
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import mean_squared
from metalearn.inner import lslr, meta_sgd, sgd
from metalearn.inner.loop import minibatch
from tests.tasks import network, randomised, regression, task

FAST = {
    "a.weight": torch.tensor([[1.0, 2.0]]),
    "a.bias": torch.tensor([3.0]),
    "b.c.weight": torch.tensor([4.0, 5.0]),
    "top": torch.tensor([6.0]),
}
GRADS = {name: torch.full_like(weight, i + 1.0) for i, (name, weight) in enumerate(FAST.items())}


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_sgd():
    rule = sgd(0.5)
    assert rule.hyper(FAST, 3) == {}
    updates, _ = rule.update(GRADS, rule.init(FAST), FAST, {})
    same(updates, {name: -0.5 * grad for name, grad in GRADS.items()})


def test_meta_sgd():
    rule = meta_sgd(0.5)
    hyper = rule.hyper(FAST, 3)
    same(hyper, {f"rate.{name}": torch.full_like(w, 0.5) for name, w in FAST.items()})
    hyper["rate.a.weight"] = torch.tensor([[0.1, 0.2]])
    updates, _ = rule.update(GRADS, rule.init(FAST), FAST, hyper)
    same(updates["a.weight"], torch.tensor([[-0.1, -0.2]]))
    same(updates["top"], torch.tensor([-2.0]))


def test_lslr_rates_are_shared_in_a_layer_and_differ_by_step():
    rule = lslr(0.5)
    hyper = rule.hyper(FAST, 2)
    layers = {"rate.a", "rate.b.c", "rate.module"}
    same(hyper, {name: torch.tensor([0.5, 0.5]) for name in layers})
    hyper["rate.a"] = torch.tensor([0.1, 0.2])
    hyper["rate.b.c"] = torch.tensor([0.3, 0.4])
    state = rule.init(FAST)
    for a, c in ((0.1, 0.3), (0.2, 0.4), (0.2, 0.4)):
        updates, state = rule.update(GRADS, state, FAST, hyper)
        same(updates["a.weight"], torch.full((1, 2), -a))
        same(updates["a.bias"], torch.tensor([-2 * a]))
        same(updates["b.c.weight"], torch.full((2,), -3 * c))
        same(updates["top"], torch.tensor([-2.0]))


def test_lslr_for_no_steps_still_has_a_rate():
    assert lslr(0.5).hyper(FAST, 0)["rate.a"].shape == (1,)


def test_more_steps_than_learned_use_the_last_rate():
    net = network(lambda: nn.Linear(4, 2))
    support = task(regression(), 0).support
    algo = MAML(net, steps=2, rule=lslr(0.1), loss=mean_squared)
    meta = algo.init()
    first, last = randomised(meta["hyper"])["rate.module"].tolist()
    meta["hyper"] = {"rate.module": torch.tensor([first, last], dtype=torch.float64)}
    fast = adapt(algo, meta, support, steps=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=first)
    for rate in (first, last, last, last, last):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.mse_loss(net(support.x), support.y).backward()
        optimizer.step()
    for name, weight in net.named_parameters():
        torch.testing.assert_close(fast[name], weight, rtol=1e-12, atol=0, check_dtype=True)


@pytest.mark.parametrize(
    "size, rows",
    [
        (2, [[0, 1], [2, 3], [4, 0], [1, 2]]),
        (5, [[0, 1, 2, 3, 4]] * 4),
        (9, [[0, 1, 2, 3, 4]] * 4),
        (None, [[0, 1, 2, 3, 4]] * 4),
    ],
)
def test_minibatches_go_in_order_and_start_over(size, rows):
    support = Batch(torch.arange(5.0), torch.arange(5), torch.arange(1.0, 6.0) / 10)
    for step, want in enumerate(rows):
        part = minibatch(support, size, step)
        assert part.y.tolist() == want
        assert part.x.tolist() == [float(i) for i in want]
        same(part.weight, (torch.tensor(want) + 1) / 10)


@pytest.mark.parametrize("real", [[0, 1, 2, 3, 4], [1, 2, 4], [3]])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_padding_has_no_turn(real, size):
    weight = torch.tensor([1.0 if i in real else 0.0 for i in range(5)])
    padded = Batch(torch.arange(5.0), torch.arange(5), weight)
    alone = Batch(padded.x[real], padded.y[real])
    for step in range(4):
        part, want = minibatch(padded, size, step), minibatch(alone, size, step)
        assert part.weight is not None
        assert sorted(part.y[part.weight > 0].tolist()) == sorted(want.y.tolist())


def test_a_batch_without_weights_stays_without():
    assert minibatch(Batch(torch.arange(5.0), torch.arange(5)), 2, 1).weight is None
