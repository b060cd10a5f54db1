"""Learned rules by hand, the order of inner minibatches, rates beyond the last, wrong values."""

import pytest
import torch
from torch import nn

from metalearn import Batch, adapt
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import mean_squared
from metalearn.errors import UsageError
from metalearn.inner import (
    adam,
    adamw,
    lslr,
    meta_curvature,
    meta_sgd,
    momentum,
    rmsprop,
    sgd,
)
from metalearn.inner.loop import minibatch
from metalearn.types import Given
from tests.inner.cases import RULES, built
from tests.tasks import generator, network, randomised, regression, task

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
        part = minibatch(Given(support), size, step).support
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
        part = minibatch(Given(padded), size, step).support
        want = minibatch(Given(alone), size, step).support
        assert part.weight is not None
        assert sorted(part.y[part.weight > 0].tolist()) == sorted(want.y.tolist())


def test_a_batch_without_weights_stays_without():
    assert minibatch(Given(Batch(torch.arange(5.0), torch.arange(5))), 2, 1).support.weight is None


SHAPES = {
    "conv.weight": (4, 3, 2, 5),
    "line.weight": (4, 3, 5),
    "head.weight": (2, 4),
    "head.bias": (2,),
    "scale": (),
}
LAYERS = {n: torch.randn(s, generator=generator(i)) for i, (n, s) in enumerate(SHAPES.items())}


def test_curvature_has_a_matrix_for_every_mode():
    hyper = meta_curvature(0.5).hyper(LAYERS, 3)
    assert {name.removeprefix("curvature."): tuple(t.shape) for name, t in hyper.items()} == {
        "conv.weight.out": (4, 4),
        "conv.weight.in": (3, 3),
        "conv.weight.filter": (10, 10),
        "line.weight.out": (4, 4),
        "line.weight.in": (3, 3),
        "line.weight.filter": (5, 5),
        "head.weight.out": (2, 2),
        "head.weight.in": (4, 4),
        "head.bias.diagonal": (2,),
        "scale.diagonal": (),
    }


def test_curvature_starts_as_gradient_descent():
    rule = meta_curvature(0.5)
    updates, _ = rule.update(LAYERS, {}, LAYERS, rule.hyper(LAYERS, 3))
    same(updates, {name: -0.5 * grad for name, grad in LAYERS.items()})


def test_curvature_mixes_what_its_matrices_say():
    rule = meta_curvature(1.0)
    hyper = rule.hyper({"w": torch.zeros(2, 2)}, 1)
    hyper["curvature.w.out"] = torch.tensor([[1.0, 10.0], [0.0, 1.0]])
    hyper["curvature.w.in"] = torch.tensor([[1.0, 0.0], [100.0, 1.0]])
    grads = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    updates, _ = rule.update(grads, {}, grads, hyper)
    same(updates["w"], -torch.tensor([[31.0, 3142.0], [3.0, 304.0]]))


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_clipped_before_the_decay_joins_it(rule):
    grads = {name: 3 * grad for name, grad in GRADS.items()}
    length = torch.cat([grad.flatten() for grad in grads.values()]).norm()
    coupled = {n: g / length * 2 + 0.5 * FAST[n] for n, g in grads.items()}
    plain = built(rule, weight_decay=0.0) if rule == "adamw" else built(rule)
    made = built(rule, weight_decay=0.0 if rule == "adamw" else 0.5, clip_norm=2.0)
    want = coupled if rule != "adamw" else {n: g / length * 2 for n, g in grads.items()}
    hyper = made.hyper(FAST, 1)
    got, _ = made.update(grads, made.init(FAST), FAST, hyper)
    expected, _ = plain.update(want, plain.init(FAST), FAST, hyper)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm, length", [(0.5, 0.5), (3.0, 3.0), (6.0, 5.0)])
def test_clipping_shortens_and_never_lengthens(norm, length):
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, -4.0]])}
    updates, _ = sgd(1.0, clip_norm=norm).update(grads, {}, grads, {})
    same(updates, {"a": torch.tensor([-0.6]) * length, "b": torch.tensor([[0.0, 0.8]]) * length})


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"rate": -0.1}, "inner.rate=-0.1 must be 0 or more, and finite"),
        ({"rate": NAN}, "inner.rate=nan must be 0 or more, and finite"),
        ({"rate": INFINITE}, "inner.rate=inf must be 0 or more, and finite"),
        ({"weight_decay": -1e-4}, "inner.weight_decay=-0.0001 must be 0 or more, and finite"),
        ({"clip_norm": 0.0}, "inner.clip_norm=0.0 must be above 0, and finite"),
        ({"clip_norm": -1}, "inner.clip_norm=-1 must be above 0, and finite"),
        ({"batch_size": 0}, "inner.batch_size=0 must be 1 or more"),
    ],
)
def test_wrong_options(name, wrong, told):
    with pytest.raises(UsageError) as caught:
        built(name, **wrong)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    "make, wrong, told",
    [
        (momentum, {"momentum": 1.0}, "inner.momentum=1.0 must be 0 or more and below 1"),
        (momentum, {"momentum": -0.1}, "inner.momentum=-0.1 must be 0 or more and below 1"),
        (momentum, {"dampening": 1.5}, "inner.dampening=1.5 must be 0 or more and below 1"),
        (momentum, {"nesterov": True, "dampening": 0.1}, "inner.nesterov=true needs"),
        (momentum, {"nesterov": True, "momentum": 0.0}, "inner.nesterov=true needs"),
        (adam, {"beta1": 1.0}, "inner.beta1=1.0 must be 0 or more and below 1"),
        (adamw, {"beta2": -0.5}, "inner.beta2=-0.5 must be 0 or more and below 1"),
        (adam, {"epsilon": 0.0}, "inner.epsilon=0.0 must be above 0, and finite"),
        (rmsprop, {"alpha": 1}, "inner.alpha=1 must be 0 or more and below 1"),
        (rmsprop, {"epsilon": -1e-8}, "inner.epsilon=-1e-08 must be above 0, and finite"),
        (rmsprop, {"momentum": 2}, "inner.momentum=2 must be 0 or more and below 1"),
    ],
)
def test_wrong_values(make, wrong, told):
    with pytest.raises(UsageError) as caught:
        make(0.1, **wrong)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
