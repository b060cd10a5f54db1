"""The implicit gradient against a dense solve in float64, and against the unrolled one."""

import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import adapt
from metalearn.algorithms import ANIL, MAML
from metalearn.backbones import MLP, Conv4
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Implicit, Unroll
from metalearn.inner import adam, adamw, alfa, lslr, meta_sgd, momentum, sgd
from metalearn.inner.rules import check_minimum
from metalearn.types import Episodes, Given, Meta
from tests.gradients.reference import call
from tests.spread import spread
from tests.tasks import apart, classification, network, on, randomised

PROXIMAL = 1.5
BATCHINGS = [
    "loop",
    "vmap",
    2,
    "vmap+im2col",
    "2+forward_over_reverse",
    "loop+forward_over_reverse",
]
FEW = ["loop", "vmap+im2col", "2+forward_over_reverse"]  # where each takes seconds


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def normed() -> nn.Module:
    """Its loss is far from convex: batch norm's curvature is above the proximal term."""
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3)
    )


def episodes() -> Episodes:
    return classification(shape=(4,))


def dense(module: nn.Module, init: dict, ends: list[dict], tasks: Episodes) -> dict:
    """-d<grad G, v>/d init + d L_query/d init of plain modules, by the full Hessian over the
    weights that adapt, at the end points `ends` of each task."""
    total = {n: torch.zeros_like(p) for n, p in init.items()}
    for t, end in enumerate(ends):
        start = {n: p.clone().requires_grad_() for n, p in init.items()}
        fast = {n: p.detach().clone().requires_grad_() for n, p in end.items()}

        def loss(x: Tensor, y: Tensor, start=start, fast=fast) -> Tensor:
            return F.cross_entropy(call(module, {**start, **fast}, x), y)

        inner = loss(tasks.support.x[t], tasks.support.y[t])
        inner = inner + PROXIMAL / 2 * sum(((fast[n] - start[n]) ** 2).sum() for n in fast)
        grads = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
        flat = torch.cat([g.flatten() for g in grads])
        outer = loss(tasks.query.x[t], tasks.query.y[t])
        learned = [*fast.values(), *start.values()]
        b, direct = _split(_gradients(outer, learned), len(fast))
        rows = [_split(_gradients(g, learned), len(fast)) for g in flat]
        hessian = torch.stack([torch.cat([h.flatten() for h in row[0]]) for row in rows])
        v = torch.linalg.solve(hessian, torch.cat([g.flatten() for g in b]))
        for i, name in enumerate(start):
            mixed = torch.stack([row[1][i] for row in rows])
            total[name] += direct[i] - torch.tensordot(v, mixed, dims=1)
    return {n: t / len(ends) for n, t in total.items()}


def _gradients(value: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _split(tensors, count: int):
    return tensors[:count], tensors[count:]


def ends(algo, meta: Meta, tasks: Episodes) -> list[dict]:
    supports = [tasks.support.map(lambda x, t=t: x[t]) for t in range(len(tasks.support.x))]
    names = algo.begin(meta, Given(supports[0]))
    found = [adapt(algo, meta, support) for support in supports]
    return [{n: fast[n] for n in names} for fast in found]


@pytest.mark.parametrize(
    "steps, build, algorithm, batching",
    spread([1, 4], [net, normed], [MAML, ANIL], BATCHINGS, share=4),
)
def test_a_dense_solve(steps, build, algorithm, batching):
    """At any end point: the linear algebra does not ask whether the inner loop has arrived."""
    module, tasks = network(build), episodes()
    algo = algorithm(module, steps=steps, rule=lslr(0.1), proximal=PROXIMAL)
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    want = dense(module, meta["init"], ends(algo, meta, tasks), tasks)
    strategy = on(Implicit(iterations=100, tolerance=1e-10), batching)
    got, metrics = strategy(algo, meta, tasks)
    zeros = {n: torch.zeros_like(t) for n, t in meta["hyper"].items()}
    assert apart({"init": got["init"], "hyper": {}}, {"init": want, "hyper": {}}) < 1e-8
    torch.testing.assert_close(got["hyper"], zeros, rtol=0, atol=0)
    for name, value in Unroll()(algo, meta, tasks)[1].items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("algorithm", [MAML, pytest.param(ANIL, marks=pytest.mark.slow)])
def test_unroll_of_a_loop_that_has_arrived(algorithm):
    """Strongly convex: one layer, and a proximal term."""
    tasks = episodes()
    algo = algorithm(network(lambda: nn.Linear(4, 3)), 60, sgd(0.3), proximal=PROXIMAL)
    meta = algo.init()
    want, _ = Unroll()(algo, meta, tasks)
    for batching in FEW:
        got, _ = on(Implicit(iterations=50, tolerance=1e-9), batching)(algo, meta, tasks)
        assert apart(got, want) < 1e-6
    assert apart(on(Adjoint(), "vmap")(algo, meta, tasks)[0], got) < 1e-6


@functools.cache
def at_the_minimum() -> tuple:
    strategy = on(Implicit(iterations=100, tolerance=1e-12), "vmap")
    plain = MAML(network(net), 150, sgd(0.25), proximal=PROXIMAL)
    return strategy, strategy(plain, plain.init(), episodes())[0]


@pytest.mark.parametrize(
    "rule",
    [
        momentum(0.1, 0.7),
        momentum(0.1, 0.7, nesterov=True),
        adam(0.02, 0.8, 0.95, epsilon=1e-2),
        meta_sgd(0.25),
    ],
    ids=["momentum", "nesterov", "adam", "meta_sgd"],
)
def test_the_way_to_the_minimum_does_not_matter(rule):
    tasks = episodes()
    strategy, want = at_the_minimum()
    algo = MAML(network(net), 200, rule, proximal=PROXIMAL)
    got, _ = strategy(algo, algo.init(), tasks)
    assert apart({"init": got["init"], "hyper": {}}, want) < 1e-6
    assert all(not g.any() for g in got["hyper"].values())


def test_minibatches_are_the_rules_and_the_curvature_is_of_all_examples():
    module, tasks = network(net), episodes()
    algo = MAML(module, 5, sgd(0.2, batch_size=3), proximal=PROXIMAL)
    meta = algo.init()
    want = dense(module, meta["init"], ends(algo, meta, tasks), tasks)
    for batching in ("loop", "vmap"):
        got, _ = on(Implicit(iterations=100, tolerance=1e-11), batching)(algo, meta, tasks)
        assert apart(got, {"init": want, "hyper": {}}) < 1e-8


@pytest.mark.parametrize("batching", ["loop", "vmap", "loop+forward_over_reverse"])
def test_both_solvers_find_the_same(batching):
    algo = MAML(network(net), 20, sgd(0.2), proximal=PROXIMAL)
    meta, tasks = algo.init(), episodes()
    one, _ = on(Implicit("cg", 60, 1e-10), batching)(algo, meta, tasks)
    other, _ = on(Implicit("neumann", 600, 1e-10, 0.2), batching)(algo, meta, tasks)
    assert apart(one, other) < 1e-8
    few, _ = on(Implicit("neumann", 3, 1e-10, 0.2), batching)(algo, meta, tasks)
    assert apart(one, few) > 1e-3


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("proximal, rate", [(2.0, 3.0), (50.0, 0.1), (1e4, 0.5)])
def test_a_neumann_series_past_its_radius_does_not_run_away(proximal, rate, batching):
    """rate times the least eigenvalue is above 2: the plain series grows in every step."""
    algo = MAML(network(net), 20, sgd(1 / (proximal + 5)), proximal=proximal)
    meta, tasks = algo.init(), episodes()
    want, _ = Implicit("cg", 100, 1e-10)(algo, meta, tasks)
    nothing, _ = Implicit("neumann", 1, 1.0, 1e-9)(algo, meta, tasks)
    off = [apart(nothing, want)]
    for iterations in (1, 5, 60):
        strategy = on(Implicit("neumann", iterations, 1e-10, rate), batching)
        off.append(apart(strategy(algo, meta, tasks)[0], want))
    assert off[0] > off[1] > off[2] and off[3] < 1e-6


def test_a_neumann_step_by_hand():
    """One: v = rate * b, and MAML's proximal term makes the gradient proximal * v."""
    algo = MAML(network(net), 3, sgd(0.2), proximal=PROXIMAL)
    meta, tasks = algo.init(), episodes()
    got, _ = Implicit("neumann", 1, 0.0, 0.2)(algo, meta, tasks)
    want = {n: torch.zeros_like(t) for n, t in meta["init"].items()}
    for t, end in enumerate(ends(algo, meta, tasks)):
        fast = {n: w.detach().requires_grad_() for n, w in end.items()}
        loss = F.cross_entropy(call(algo.module, fast, tasks.query.x[t]), tasks.query.y[t])
        for name, g in zip(fast, torch.autograd.grad(loss, list(fast.values())), strict=True):
            want[name] += PROXIMAL * 0.2 * g / 3
    assert apart(got, {"init": want, "hyper": {}}) < 1e-12


@dataclass(frozen=True, eq=False)
class Counting(MAML):
    """MAML that counts its inner losses: K steps, a product each iteration, one at the end."""

    def inner_loss(self, meta, fast, given, step):
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        return super().inner_loss(meta, fast, given, step)


def products(strategy, proximal=PROXIMAL, tasks=1) -> int:
    algo = Counting(network(net), 3, sgd(0.1), proximal=proximal)
    strategy(algo, algo.init(), classification(tasks=tasks, shape=(4,)))
    return algo.calls - 3 - 1


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_residual_stops_the_search(batching):
    assert products(on(Implicit("cg", 7, 0.0), batching)) == 7
    by_tolerance = [
        products(on(Implicit("cg", 500, tolerance), batching))
        for tolerance in (1.0, 1e-1, 1e-3, 1e-6)
    ]
    assert by_tolerance == sorted(set(by_tolerance))
    assert by_tolerance[0] == 0 and by_tolerance[-1] < 40
    # A strong proximal term makes H a multiple of one: a step is enough.
    assert products(on(Implicit("cg", 500, 1e-3), batching), proximal=1e5) == 1
    assert products(on(Implicit("neumann", 500, 1e-3, 1e-5), batching), proximal=1e5) == 1


def test_a_task_that_is_done_waits_for_the_others():
    algo = MAML(network(net), 3, sgd(0.1), proximal=PROXIMAL)
    meta, tasks = algo.init(), classification(tasks=4, shape=(4,))
    for tolerance in (0.5, 1e-2, 1e-4):
        alone, _ = on(Implicit("cg", 50, tolerance), "loop")(algo, meta, tasks)
        together, _ = on(Implicit("cg", 50, tolerance), "vmap")(algo, meta, tasks)
        assert apart(together, alone) < 1e-10
    tight, _ = Implicit("cg", 50, 1e-9)(algo, meta, tasks)
    assert 1e-6 < apart(alone, tight) < 1e-3


def test_a_gradient_of_zero_is_solved_already():
    module = nn.Linear(4, 3).double()
    tasks = episodes()
    algo = MAML(module, 2, sgd(0.1), lambda outputs, batch: _flat(outputs), proximal=PROXIMAL)
    for batching in ("loop", "vmap"):
        got, _ = on(Implicit("cg", 3, 0.0), batching)(algo, algo.init(), tasks)
        assert all(not g.any() for g in got["init"].values())


def _flat(outputs: Tensor):
    loss = (outputs * 0).sum()
    return loss, {"loss": loss.detach()}


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("factor", [1e200, float("nan")])
def test_what_is_not_finite_is_seen(batching, factor):
    tasks = episodes()
    tasks = tasks._replace(query=tasks.query._replace(x=tasks.query.x * factor))
    algo = MAML(network(lambda: nn.Linear(4, 3)), 1, sgd(0.1), proximal=PROXIMAL)
    got, _ = on(Implicit(), batching)(algo, algo.init(), tasks)
    assert not all(g.isfinite().all() for g in got["init"].values())


def test_convolutions_and_dropout():
    module = network(lambda: Conv4(3, filters=4, size=16, norm="group"))
    module.features.append(nn.Dropout(0.3))  # type: ignore[union-attr]
    algo = MAML(module, 3, sgd(0.02), proximal=20.0)
    meta, tasks = algo.init(), classification()
    found = []
    for batching in FEW:
        torch.manual_seed(3)
        found.append(on(Implicit(iterations=30, tolerance=1e-9), batching)(algo, meta, tasks))
    for got, metrics in found[1:]:
        assert apart(got, found[0][0]) < 1e-7
        torch.testing.assert_close(metrics, found[0][1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("build", [MAML, ANIL])
def test_without_a_proximal_term(build):
    algo = build(network(net))
    with pytest.raises(UsageError) as error:
        Implicit()(algo, algo.init(), episodes())
    line = "gradient Implicit needs a proximal term; set algorithm.proximal=2"
    assert str(error.value) == line
    with pytest.raises(UsageError, match=r"algorithm.proximal=-1 must be 0 or more"):
        build(network(net), proximal=-1)
    assert "implicit" in build(network(net), proximal=2.0).kinds


@pytest.mark.parametrize(
    "fault",
    [
        {"solver": "lu"},
        {"iterations": 0},
        {"tolerance": -1e-3},
        {"tolerance": float("nan")},
        {"rate": 0.0},
    ],
    ids=str,
)
def test_faults(fault):
    with pytest.raises(UsageError, match=f"gradient.{next(iter(fault))}="):
        Implicit(**fault)


@pytest.mark.parametrize("rule", [sgd(0.1, weight_decay=0.1), adamw(0.1), alfa(0.1)])
def test_a_rule_that_ends_elsewhere_is_refused(rule):
    """Where grad G + decay * theta is 0 is no minimum of G."""
    algo = MAML(network(net), 2, rule, proximal=PROXIMAL)
    with pytest.raises(UsageError, match=r"ends elsewhere; use inner=sgd, inner.weight_decay=0"):
        Implicit()(algo, algo.init(), episodes())
    Unroll()(algo, algo.init(), episodes())
    check_minimum(adam(0.1, clip_norm=1.0), "implicit")


def test_no_steps_are_refused():
    algo = MAML(network(lambda: MLP(4, 3, (8,))), steps=0, proximal=1.0)
    with pytest.raises(UsageError, match="needs algorithm.steps of 1 or more"):
        Implicit()(algo, algo.init(), episodes())
