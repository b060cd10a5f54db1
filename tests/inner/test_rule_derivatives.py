"""Every rule differentiated: finite differences, a gradient of exactly zero, vmap, and dtypes."""

import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, vmap

from metalearn import Batch, adapt, tree
from metalearn.algorithms import MAML
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import adam, adamw, momentum, rmsprop, sgd
from tests.inner.cases import OPTIONS, RULES, built, moved
from tests.tasks import classification, distance, generator, network, on, task

STEPS = 3


def smooth() -> nn.Module:
    """No kinks: a difference quotient is only as good as the third derivative."""
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def started(rule, dtype=torch.float64):
    """(algorithm, meta with every learned tensor moved, three tasks)."""
    episodes = classification(shape=(5,), dtype=dtype)
    algo = MAML(network(smooth, dtype=dtype), steps=STEPS, rule=rule)
    meta = algo.init()
    meta["hyper"] = moved(meta["hyper"])
    return algo, meta, episodes


def random_like(tensors, seed: int):
    g = generator(seed)
    return {n: torch.randn(t.shape, generator=g, dtype=t.dtype) for n, t in tensors.items()}


@pytest.mark.parametrize("strategy", [Unroll, Adjoint])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_finite_differences(rule, options, strategy):
    algo, meta, episodes = started(built(rule, options))
    gradient, _ = on(strategy(), "vmap")(algo, meta, episodes)
    parts = ("init", "hyper")
    along = {part: random_like(meta[part], 7) for part in parts}

    def loss(width: float) -> float:
        there = {p: tree.add(meta[p], tree.scale(along[p], width)) for p in parts}
        losses = []
        for t in range(len(episodes.support.x)):
            support, query, _ = task(episodes, t)
            fast = adapt(algo, {**meta, **there}, support)
            losses.append(algo.outer_loss({**meta, **there}, fast, query)[0])
        return float(torch.stack(losses).mean())

    quotient = (loss(1e-5) - loss(-1e-5)) / 2e-5
    product = sum(float((gradient[p][n] * along[p][n]).sum()) for p in parts for n in along[p])
    assert abs(quotient) > 1e-3
    assert product == pytest.approx(quotient, rel=1e-5)


ZERO = {
    "adam": adam(0.1),
    "adam_no_mean": adam(0.1, beta1=0.0, beta2=0.0),
    "adamw": adamw(0.1),
    "rmsprop": rmsprop(0.1),
    "rmsprop_momentum": rmsprop(0.1, momentum=0.9),
    "clipped": sgd(0.1, clip_norm=1.0),
    "clipped_adam": adam(0.1, clip_norm=1.0),
    "clipped_nesterov": momentum(0.1, nesterov=True, weight_decay=0.1, clip_norm=1.0),
}


def walk(rule, grads, fast, steps=STEPS):
    """Where `steps` steps along multiples of the same gradient lead."""
    start = {"w": fast}
    state = rule.init(start)
    for step in range(steps):
        updates, state = rule.update({"w": grads * (1 + step)}, state, start, {})
        start = tree.add(start, updates)
    return start["w"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ZERO)
def test_derivatives_at_a_zero_gradient_are_finite(name, dtype):
    fast = torch.tensor([0.5, -0.3, 0.2], dtype=dtype)
    for grads in (torch.zeros(3, dtype=dtype), torch.tensor([0.0, 1e-30, 2.0], dtype=dtype)):

        def end(grads):
            return walk(ZERO[name], grads, fast)

        first = jacrev(end)(grads)
        assert torch.isfinite(first).all()
        assert (first.diagonal()[:2] < 0).all()
        assert torch.isfinite(jacrev(jacrev(end))(grads)).all()


def test_the_slope_at_a_zero_gradient_is_the_rate_over_epsilon():
    slope = jacrev(lambda g: walk(adam(0.1, epsilon=1e-3), g, g.new_zeros(1), 1))
    at = slope(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(at, torch.full_like(at, -0.1 / 1e-3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("strategy", [Unroll, Adjoint])
@pytest.mark.parametrize("name", ZERO)
def test_a_dead_unit_leaves_the_meta_gradient_finite(name, strategy):
    """A unit that no example reaches: its weights' inner gradients are exactly zero."""

    def dead() -> nn.Module:
        net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        with torch.no_grad():
            net[0].bias[1] = -100.0
        return net

    episodes = classification(shape=(5,))
    algo = MAML(network(dead), steps=STEPS, rule=ZERO[name])
    meta = algo.init()
    inner = grad(algo.inner_loss, argnums=1)(meta, meta["init"], task(episodes, 0).support)
    assert not inner["0.weight"][1].any() and inner["0.weight"][0].any()
    gradient, _ = strategy()(algo, meta, episodes)
    for part in gradient["init"].values():
        assert torch.isfinite(part).all()
    assert gradient["init"]["0.weight"][0].abs().max() > 1e-3


@pytest.mark.parametrize("options", ["plain", "decay_clipped"])
@pytest.mark.parametrize("rule", RULES)
def test_vmap_of_a_rule_equals_the_loop(rule, options):
    """Over three tasks' gradients, weights and states that differ, and through grad."""
    made = built(rule, options)
    shapes = {"c.weight": (4, 3, 2, 2), "l.weight": (3, 4), "l.bias": (3,)}
    like = {n: torch.zeros(shape, dtype=torch.float64) for n, shape in shapes.items()}
    hyper = moved(made.hyper(like, STEPS))
    tasks = {n: torch.zeros(3, *shape, dtype=torch.float64) for n, shape in shapes.items()}
    grads, fast = random_like(tasks, 1), random_like(tasks, 2)

    def end(grads, fast):
        state = made.init(fast)
        for _ in range(STEPS):
            updates, state = made.update(grads, state, fast, hyper)
            fast = tree.add(fast, updates)
            grads = tree.map(lambda g, w: g * torch.cos(w), grads, fast)
        return fast

    def total(grads, fast):
        return torch.stack([w.square().sum() for w in end(grads, fast).values()]).sum()

    for f in (end, grad(total), grad(total, argnums=1)):
        got = vmap(f)(grads, fast)
        for t in range(3):
            want = f(tree.map(lambda a, t=t: a[t], grads), tree.map(lambda a, t=t: a[t], fast))
            assert distance({n: a[t] for n, a in got.items()}, want) < 1e-13


@pytest.mark.parametrize("rule", RULES)
def test_float32_follows_float64(rule):
    exact, rough = (
        Unroll()(*started(built(rule, "decay_clipped"), dtype))[0]
        for dtype in (torch.float64, torch.float32)
    )
    for part in ("init", "hyper"):
        assert all(t.dtype == torch.float32 for t in rough[part].values())
        assert distance({n: t.double() for n, t in rough[part].items()}, exact[part]) < 1e-4


def test_adam_corrects_its_bias_in_float32():
    """1 - 0.999 in float32 is off by 5e-5, which would show in the first steps."""
    g = torch.tensor([0.3, -0.2])
    ends = [walk(adam(1.0), g.to(d), torch.zeros(2, dtype=d), 1) for d in (g.dtype, torch.double)]
    torch.testing.assert_close(ends[0].double(), ends[1], rtol=3e-7, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_state_and_hyper_are_float_tensors_that_keep_their_names(rule):
    made = built(rule, "decay_clipped")
    fast = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "scale": torch.ones(())}
    state, hyper = made.init(fast), made.hyper(fast, STEPS)
    _, after = made.update(fast, state, fast, hyper)
    shapes = [{n: (t.shape, t.dtype) for n, t in tensors.items()} for tensors in (state, after)]
    assert shapes[0] == shapes[1]
    assert all(t.dtype == torch.float32 for t in [*state.values(), *hyper.values()])


def test_minibatches_pass_through_every_rule():
    support = Batch(torch.rand(4, 5, generator=generator()), torch.arange(4) % 3)
    for rule in RULES:
        algo = MAML(network(smooth, dtype=torch.float32), steps=STEPS, rule=built(rule))
        whole = adapt(algo, algo.init(), support)
        algo = MAML(algo.module, steps=STEPS, rule=built(rule, batch_size=2))
        assert distance(adapt(algo, algo.init(), support), whole) > 1e-5
