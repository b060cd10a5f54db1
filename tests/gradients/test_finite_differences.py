"""The exact strategies against central differences of the plain loop's loss, to 1e-5."""

import pytest
import torch
from torch import nn

from metalearn.algorithms import ANIL, MAML, ProtoNet
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import lslr, meta_sgd, sgd
from tests.gradients import reference
from tests.tasks import classification, generator, network, on, randomised

RULES = {
    "sgd": (sgd(reference.RATE), reference.fixed),
    "meta_sgd": (meta_sgd(0.1), reference.per_weight),
    "lslr": (lslr(0.1), reference.per_layer_and_step),
}


def smooth() -> nn.Module:
    """No kinks: a difference quotient is only as good as the third derivative."""
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8, track_running_stats=False),
        nn.Tanh(),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    )


def directional(loss, learned: dict, gradient: dict, width: float = 1e-5) -> tuple[float, float]:
    """(<gradient, v>, the quotient along v) for a random v over `init` and `hyper` at once."""
    g = generator(7)
    v = {
        part: {
            n: torch.randn(t.shape, generator=g, dtype=t.dtype) for n, t in learned[part].items()
        }
        for part in ("init", "hyper")
    }

    def at(epsilon: float) -> float:
        moved = {p: {n: t + epsilon * v[p][n] for n, t in learned[p].items()} for p in v}
        return float(loss(moved["init"], moved["hyper"]).detach())

    inner = sum(float((gradient[p][n] * v[p][n]).sum()) for p in v for n in v[p])
    return inner, (at(width) - at(-width)) / (2 * width)


@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Checkpointed])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("algorithm", [MAML, ANIL])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gradient_steps(strategy, rule, algorithm, steps):
    net, episodes = network(smooth), classification(shape=(5,))
    inner, rates = RULES[rule]
    algo = algorithm(net, steps=steps, rule=inner)
    meta = algo.init()
    meta["hyper"] = randomised(meta["hyper"])
    last = list(meta["init"])[-1].split(".")[0]

    def loss(init, hyper):
        init = {n: t.detach().requires_grad_() for n, t in init.items()}
        adapts = (lambda n: n.startswith(last)) if algorithm is ANIL else lambda n: True
        return reference.outer_loss(net, init, hyper, episodes, steps, rates=rates, adapts=adapts)

    gradient, _ = on(strategy(), "vmap")(algo, meta, episodes)
    inner_product, quotient = directional(loss, meta, gradient)
    assert abs(quotient) > 1e-3
    assert inner_product == pytest.approx(quotient, rel=1e-5)


@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Checkpointed])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_prototypes(strategy, metric):
    net, episodes = network(smooth), classification(shape=(5,))
    algo = ProtoNet(net, distance=metric, temperature=0.7, learn_temperature=True)
    meta = algo.init()

    def loss(init, hyper):
        meta_there = {**meta, "init": init, "hyper": hyper}
        return on(strategy(), "loop")(algo, meta_there, episodes)[1]["loss"].mean()

    gradient, _ = on(strategy(), "vmap")(algo, meta, episodes)
    inner_product, quotient = directional(loss, meta, gradient)
    assert abs(quotient) > 1e-3
    assert inner_product == pytest.approx(quotient, rel=1e-5)
