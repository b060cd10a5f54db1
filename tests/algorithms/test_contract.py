"""What every algorithm keeps to; a new one is one line in ALGORITHMS."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from metalearn import adapt, algorithms, gradients
from metalearn.algorithms.losses import mean_squared
from metalearn.classifiers import LinearProbe, LogisticRegression
from metalearn.engine.strategy import STRATEGIES
from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm
from metalearn.inner import alfa, lslr, meta_sgd, sgd
from metalearn.types import Given
from tests.tasks import apart, classification, network, on, regression, task

WAYS, SHOTS, QUERIES = 3, 2, 7

ALGORITHMS = {
    "MAML": lambda net: algorithms.MAML(net, steps=2, rule=lslr(0.1)),
    "ANIL": lambda net: algorithms.ANIL(net, steps=2, rule=lslr(0.1)),
    "MAML-proximal": lambda net: algorithms.MAML(net, steps=2, rule=sgd(0.1), proximal=4.0),
    "Reptile": lambda net: algorithms.Reptile(net, steps=3, rule=sgd(0.1, batch_size=4)),
    "ProtoNet": lambda net: algorithms.ProtoNet(net, learn_temperature=True),
    "ProtoMAML": lambda net: algorithms.ProtoMAML(net, steps=2, rule=lslr(0.1)),
    "R2D2": lambda net: algorithms.R2D2(net, regularisation=0.7),
    "SoftKMeans": lambda net: algorithms.SoftKMeans(net, 2, learn_temperature=True),
    "Metric": lambda net: algorithms.Metric(net, LogisticRegression(2.0, learn_strength=True)),
    "Metric-probe": lambda net: algorithms.Metric(net, LinearProbe(meta_sgd(0.1), 3)),
    "MAMLpp": lambda net: algorithms.MAMLpp(net, 2, lslr(0.1), multi_step=10),
    "BOIL": lambda net: algorithms.BOIL(net, steps=2, rule=lslr(0.1)),
    "CAVIA": lambda net: algorithms.CAVIA(net, 2, sgd(0.5), context=5),
    "ALFA": lambda net: algorithms.ALFA(net, steps=2, rule=alfa(0.1)),
    "MeTAL": lambda net: algorithms.MeTAL(net, steps=2, rule=lslr(0.1)),
    "UnicornMAML": lambda net: algorithms.UnicornMAML(net, steps=2, rule=lslr(0.1)),
    "TNet": lambda net: algorithms.TNet(net, steps=2, rule=lslr(0.1)),
    "InContext": lambda net: algorithms.InContext(net, WAYS, 2, 2, 16, 8, frozen=False),
    "LEO": lambda net: algorithms.LEO(net, 2, 2, code=6, rate=0.3, head_rate=0.1),
    "SharpMAML": lambda net: algorithms.SharpMAML(net, steps=2, rule=lslr(0.1)),
    "MAML-part": lambda net: algorithms.MAML(
        net, steps=2, rule=lslr(0.1), adapting=["3.weight", "3.bias", "4.weight", "4.bias"]
    ),
}
COLUMNS = dict.fromkeys(
    ("ProtoNet", "ProtoMAML", "R2D2", "SoftKMeans", "Metric", "Metric-probe", "LEO", "InContext"),
    WAYS * SHOTS,
)
"""Width of the predictions where it is not the number of ways."""
OTHERS = {
    "MAMLpp": ("1.weight", "1.bias"),  # a row for each step, in hyper
    "UnicornMAML": ("4.weight", "4.bias"),  # one row for all classes
    "LEO": ("4.weight", "4.bias"),  # the head is decoded
}
"""Weights of the network that are not learned as they are."""


def net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), BatchNorm(8, "support"), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, WAYS)
    )


ELSEWHERE = ("Annealed", "Evolution", "Bootstrapped")  # strategies: tests/gradients/test_surrogates


@pytest.fixture(params=ALGORITHMS)
def name(request) -> str:
    return request.param


@pytest.fixture
def module() -> nn.Module:
    return network(net)


@pytest.fixture
def algo(name, module):
    return ALGORITHMS[name](module)


def fitting(algo):
    """The strategies of its kinds, but for those that have tests of their own."""
    names = [name for kind in algo.kinds for name in STRATEGIES[kind]]
    return [getattr(gradients, name) for name in names if name not in ELSEWHERE]


def episodes(tasks: int = 3):
    return classification(tasks, WAYS, SHOTS, QUERIES, (4,))


def equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_every_algorithm_is_listed():
    public = set(algorithms.__all__) - {"MetaAlgorithm"}
    assert public == {name.partition("-")[0] for name in ALGORITHMS}


def test_every_strategy_is_listed():
    listed = [name for names in STRATEGIES.values() for name in names]
    assert sorted(listed) == sorted(gradients.__all__)
    for kind, names in STRATEGIES.items():
        assert {getattr(gradients, name).kind for name in names} == {kind}


def test_the_protocol_is_whole(algo):
    methods = [n for n, _ in inspect.getmembers(algorithms.MetaAlgorithm, inspect.isfunction)]
    asked = [n for n in methods if not n.startswith("_")]
    assert {"init", "begin", "inner_loss", "finish", "outer_loss", "predict"} <= set(asked)
    for method in asked:
        theirs = inspect.signature(getattr(algorithms.MetaAlgorithm, method))
        assert [*inspect.signature(getattr(algo, method)).parameters] == [*theirs.parameters][1:]
    assert isinstance(algo.steps, int)
    assert algo.kinds and set(algo.kinds) <= set(STRATEGIES)


def test_init_copies_the_module_and_is_deterministic(algo, name, module):
    meta, again = algo.init(), algo.init()
    equal(meta, again)
    own = dict(module.named_parameters())
    equal({n: w for n, w in meta["init"].items() if n in own and w.shape == own[n].shape},
          {n: p.detach() for n, p in own.items() if n not in OTHERS.get(name, ())})  # fmt: skip
    own = {t.untyped_storage().data_ptr() for t in tree_leaves(meta)}
    assert len(own) == len(tree_leaves(meta))
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in tree_leaves(again))
    assert own.isdisjoint(p.untyped_storage().data_ptr() for p in module.parameters())
    assert all(t.is_floating_point() and not t.requires_grad for t in tree_leaves(meta))


def test_one_task_has_no_leading_dimension(algo, name):
    support, query, _ = task(episodes(), 0)
    meta = algo.init()
    fast = algo.begin(meta, Given(support))
    loss = algo.inner_loss(meta, fast, Given(support), 0)
    assert loss.shape == () and torch.isfinite(loss)
    fast = adapt(algo, meta, support)
    outer, metrics = algo.outer_loss(meta, fast, query)
    assert outer.shape == ()
    assert set(metrics) == {"loss", "accuracy"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    equal(metrics["loss"], outer.detach())
    logits = algo.predict(meta, fast, query.x)
    assert logits.shape == (QUERIES, COLUMNS.get(name, WAYS))
    right = (logits.argmax(1) == query.y).double().mean()
    equal(metrics["accuracy"], right)
    cross_entropy = nn.functional.cross_entropy(logits, query.y)
    torch.testing.assert_close(outer, cross_entropy, rtol=1e-12, atol=0)


def test_queries_do_not_see_one_another_under_support_statistics(algo):
    support, query, _ = task(episodes(), 0)
    meta = algo.init()
    fast = adapt(algo, meta, support)
    alone = torch.cat([algo.predict(meta, fast, x.unsqueeze(0)) for x in query.x])
    torch.testing.assert_close(algo.predict(meta, fast, query.x), alone, rtol=1e-12, atol=1e-14)


def test_adapting_lowers_the_inner_loss(algo):
    if not algo.steps:
        return
    support = task(episodes(), 0).support
    meta = algo.init()
    before = algo.inner_loss(meta, algo.begin(meta, Given(support)), Given(support), 0)
    fast = adapt(algo, meta, support, steps=20)
    assert algo.inner_loss(meta, fast, Given(support), 0) < 0.9 * before


def test_gradient_is_shaped_like_what_is_learned(algo):
    meta = algo.init()
    for strategy in fitting(algo):
        gradient, metrics = strategy()(algo, meta, episodes())
        assert set(gradient) == {"init", "hyper"}
        for part in gradient:
            got = {n: (t.shape, t.dtype) for n, t in gradient[part].items()}
            assert got == {n: (t.shape, t.dtype) for n, t in meta[part].items()}
        assert {n: t.shape for n, t in metrics.items()} == {"loss": (3,), "accuracy": (3,)}


def test_the_mean_over_tasks(algo):
    meta, all_tasks = algo.init(), episodes()
    for strategy in fitting(algo):
        whole, measured = strategy()(algo, meta, all_tasks)
        parts = []
        for t in range(3):
            one = task(all_tasks, t)
            one = one.map(lambda t: t[None])
            parts.append(strategy()(algo, meta, one))
            torch.testing.assert_close(measured["loss"][t], parts[-1][1]["loss"][0])
        mean = {p: {n: sum(g[p][n] for g, _ in parts) / 3 for n in meta[p]} for p in whole}
        assert apart(whole, mean) < 1e-12


def test_vmap_equals_the_loop(algo):
    meta = algo.init()
    others = ("2+im2col+forward_over_reverse", "loop+forward_over_reverse")
    for place, strategy in enumerate(fitting(algo)):
        looped, measured = on(strategy(), "loop")(algo, meta, episodes())
        for batching in ("vmap", others[place % 2]):
            mapped, metrics = on(strategy(), batching)(algo, meta, episodes())
            assert apart(mapped, looped) < 1e-12, batching
            torch.testing.assert_close(metrics, measured, rtol=1e-12, atol=0)


@pytest.mark.parametrize("batching", [pytest.param("loop", marks=pytest.mark.slow), "vmap"])
def test_nothing_is_changed_and_two_calls_are_equal(algo, module, batching):
    meta, tasks = algo.init(), episodes()
    given = [t for t in tree_leaves((meta, tasks)) if t is not None]
    versions = [t._version for t in given]
    before = copy.deepcopy((meta, tasks, module.state_dict(), algo.net.module.state_dict()))
    for strategy in fitting(algo):
        first, second = (on(strategy(), batching)(algo, meta, tasks) for _ in range(2))
        equal(first, second)
    assert [t._version for t in given] == versions
    assert {n: p.grad for n, p in module.named_parameters() if p.grad is not None} == {}
    equal([*before], [meta, tasks, module.state_dict(), algo.net.module.state_dict()])


def test_a_strategy_that_does_not_fit_is_refused(algo):
    for kind in set(STRATEGIES) - set(algo.kinds):
        for strategy in STRATEGIES[kind]:
            with pytest.raises(UsageError) as error:
                getattr(gradients, strategy)()(algo, algo.init(), episodes())
            line, usual = str(error.value), STRATEGIES[algo.kinds[0]][0]
            assert "\n" not in line and line.startswith(f"gradient {strategy} ")
            fits = f"does not fit {type(algo).__name__}; use {usual}"
            assert fits in line or line.endswith("needs a proximal term; set algorithm.proximal=2")


@pytest.mark.parametrize("build", [algorithms.MAML, algorithms.ANIL, algorithms.Reptile])
def test_regression(build):
    algo = build(network(lambda: nn.Linear(4, 2)), steps=1, rule=sgd(0.1), loss=mean_squared)
    support, query, _ = task(regression(), 0)
    meta = algo.init()
    fast = adapt(algo, meta, support)
    loss, metrics = algo.outer_loss(meta, fast, query)
    values = algo.predict(meta, fast, query.x)
    assert values.shape == query.y.shape
    torch.testing.assert_close(loss, nn.functional.mse_loss(values, query.y), rtol=1e-12, atol=0)
    assert set(metrics) == {"loss"}
