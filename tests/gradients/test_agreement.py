"""Every exact strategy and batching equals the plain float64 task loop, to 1e-10."""

import functools

import pytest
import torch
import torch.nn.functional as F

from metalearn.algorithms import ANIL, MAML
from metalearn.algorithms.losses import mean_squared
from metalearn.backbones import MLP, Conv4
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Truncated, Unroll
from metalearn.inner import lslr, meta_sgd, sgd
from tests.gradients import reference
from tests.spread import spread
from tests.tasks import apart, classification, network, on, randomised, regression

BATCHINGS = ["loop", "vmap", 2]
RULES = {
    "sgd": (sgd(reference.RATE), reference.fixed),
    "meta_sgd": (meta_sgd(0.1), reference.per_weight),
    "lslr": (lslr(0.1), reference.per_layer_and_step),
}
ALGORITHMS = {"maml": MAML, "anil": ANIL}
ADAPTS = {"maml": lambda name: True, "anil": lambda name: name.startswith("head.")}
NORMS = ["transductive", "support", "running", "group", "none"]
BACKBONES = [f"pool-{norm}" for norm in NORMS] + ["stride-transductive", "mlp"]
STEPS = 2
EXACT = {
    "unroll": (Unroll, [*BATCHINGS, "vmap+im2col"]),
    "adjoint": (
        Adjoint,
        [*BATCHINGS, "vmap+im2col", "2+forward_over_reverse", "loop+forward_over_reverse"],
    ),
    "checkpointed": (Checkpointed, [*BATCHINGS, "vmap+im2col"]),
}
RUNS = [f"{name}:{batching}" for name, (_, batchings) in EXACT.items() for batching in batchings]


@functools.cache
def problem(algorithm: str, rule: str, backbone: str, steps: int = STEPS, **how):
    """The algorithm, its meta, the episodes and the reference's gradient."""
    inner, rates = RULES[rule]
    if backbone == "mlp":
        net = plain = network(lambda: MLP(4, 2, (8, 8)))
        episodes, loss, plain_loss = regression(), mean_squared, F.mse_loss
    else:
        downsample, norm = backbone.split("-")
        net = network(lambda: Conv4(3, filters=4, size=16, downsample=downsample, norm=norm))
        plain = reference.PlainConv4(norm, downsample, 3, 4).double()
        plain.load_state_dict(net.state_dict(), strict=norm != "running")
        episodes, loss, plain_loss = classification(), None, F.cross_entropy
    options = {} if loss is None else {"loss": loss}
    algo = ALGORITHMS[algorithm](net, steps=steps, rule=inner, **options)
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    want = reference.meta_gradient(
        plain,
        meta["hyper"],
        episodes,
        steps,
        rates=rates,
        adapts=ADAPTS[algorithm],
        loss=plain_loss,
        **how,
    )
    return algo, meta, episodes, want


@pytest.mark.parametrize(
    "run, algorithm, rule, backbone", spread(RUNS, ALGORITHMS, RULES, BACKBONES, share=4)
)
def test_exact(run, algorithm, rule, backbone):
    name, batching = run.split(":")
    algo, meta, episodes, want = problem(algorithm, rule, backbone)
    way = int(batching) if batching.isdigit() else batching
    got, _ = on(EXACT[name][0](), way)(algo, meta, episodes)
    assert apart(got, want) < 1e-10


@pytest.mark.parametrize("backbone", ["mlp", "pool-support"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_any_number_of_steps(steps, algorithm, backbone):
    rule = "lslr" if steps else "sgd"
    algo, meta, episodes, want = problem(algorithm, rule, backbone, steps)
    for strategy in (Unroll, Adjoint, Checkpointed):
        for batching in ("loop", 2, "vmap+forward_over_reverse", "loop+forward_over_reverse"):
            got, _ = on(strategy(), batching)(algo, meta, episodes)
            assert apart(got, want) < 1e-10


@pytest.mark.parametrize("backbone", ["pool-transductive", "pool-support", "mlp"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("batching", BATCHINGS)
def test_first_order(batching, algorithm, rule, backbone):
    algo, meta, episodes, want = problem(algorithm, rule, backbone, second_order=False)
    got, _ = on(FirstOrder(), batching)(algo, meta, episodes)
    assert apart(got, want) < 1e-10
    none, _ = on(Truncated(0), batching)(algo, meta, episodes)
    assert apart(none, got) == 0
    exact = problem(algorithm, rule, backbone)[3]
    assert apart(got, exact) > 1e-4


@pytest.mark.parametrize("backbone", ["pool-support", "mlp"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("last", [1, 2])
def test_truncated(last, algorithm, backbone):
    algo, meta, episodes, want = problem(algorithm, "lslr", backbone, 4, last=last)
    for batching in (*BATCHINGS, "vmap+im2col"):
        got, _ = on(Truncated(last), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10
    for other in ({}, {"second_order": False}, {"last": 3 - last}):
        assert apart(got, problem(algorithm, "lslr", backbone, 4, **other)[3]) > 1e-4
    whole, _ = Truncated(9)(algo, meta, episodes)
    assert apart(whole, problem(algorithm, "lslr", backbone, 4)[3]) < 1e-10


@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Checkpointed])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_inner_minibatches(strategy, batch_size):
    net, episodes = network(lambda: MLP(4, 3, (8,))), classification(shape=(4,))
    algo = MAML(net, steps=4, rule=lslr(0.1, batch_size=batch_size))
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    want = reference.meta_gradient(
        net,
        meta["hyper"],
        episodes,
        4,
        rates=reference.per_layer_and_step,
        batch_size=batch_size,
    )
    for batching in BATCHINGS:
        got, _ = on(strategy(), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10


def test_metrics_are_those_of_each_task():
    algo, meta, episodes, _ = problem("maml", "sgd", "pool-transductive")
    plain = reference.PlainConv4("transductive", "pool", 3, 4).double()
    plain.load_state_dict(meta["init"])
    losses, accuracies = [], []
    for t in range(3):
        fast = reference.adapted(
            plain,
            {n: p.clone().requires_grad_() for n, p in meta["init"].items()},
            {},
            (episodes.support.x[t], episodes.support.y[t]),
            STEPS,
            reference.fixed,
            lambda name: True,
            F.cross_entropy,
            False,
            None,
        )
        plain.load_state_dict(fast)
        outputs = plain(episodes.query.x[t]).detach()
        losses.append(F.cross_entropy(outputs, episodes.query.y[t]))
        accuracies.append((outputs.argmax(1) == episodes.query.y[t]).double().mean())
    for batching in BATCHINGS:
        _, metrics = on(Unroll(), batching)(algo, meta, episodes)
        torch.testing.assert_close(metrics["loss"], torch.stack(losses), rtol=1e-12, atol=0)
        torch.testing.assert_close(metrics["accuracy"], torch.stack(accuracies), rtol=0, atol=0)
