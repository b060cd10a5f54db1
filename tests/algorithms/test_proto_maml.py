"""Proto-MAML against a plain float64 loop, and its start against ProtoNet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn.algorithms import ProtoMAML, ProtoNet
from metalearn.backbones import Conv4
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from metalearn.inner import adam, meta_curvature, meta_sgd, sgd
from metalearn.types import Given
from tests.gradients import reference
from tests.tasks import apart, classification, network, on, randomised, task

WAYS, STEPS = 3, 2


def features() -> nn.Module:
    return network(lambda: Conv4(None, filters=4, size=16))


def plain_gradient(net, hyper, episodes, fast):
    """Class by class; the head has as many rows as the task has classes."""
    init = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    hyper = {n: t.clone().requires_grad_() for n, t in hyper.items()}
    losses = []
    for t in range(len(episodes.support.x)):
        x, y = episodes.support.x[t], episodes.support.y[t]
        embedded = reference.call(net, init, x)
        means = torch.stack([embedded[y == n].mean(0) for n in range(WAYS)])
        w, b = 2 * means, -(means**2).sum(1)
        # Copies: a step of the body is taken with the head held, not through the prototypes.
        weights = {n: p.clone() for n, p in init.items()}
        for _ in range(STEPS):
            loss = F.cross_entropy(reference.call(net, weights, x) @ w.T + b, y)
            moving = [*(weights[n] for n in fast), w, b]
            grads = torch.autograd.grad(loss, moving, create_graph=True)
            for n, g in zip(fast, grads, strict=False):
                weights[n] = weights[n] - hyper[f"rate.{n}"] * g
            w = w - hyper["rate.prototypes.weight"] * grads[-2]
            b = b - hyper["rate.prototypes.bias"] * grads[-1]
        logits = reference.call(net, weights, episodes.query.x[t]) @ w.T + b
        losses.append(F.cross_entropy(logits, episodes.query.y[t]))
    learned = [*init.values(), *hyper.values()]
    grads = torch.autograd.grad(torch.stack(losses).mean(), learned)
    return {
        "init": dict(zip(init, grads, strict=False)),
        "hyper": dict(zip(hyper, grads[len(init) :], strict=True)),
    }


@pytest.mark.parametrize("part", ["all", "last", "none"])
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Checkpointed])
def test_agrees_with_the_plain_loop(strategy, part):
    net, episodes = features(), classification(ways=WAYS)
    plain = reference.PlainConv4("transductive", "pool", WAYS, 4).double()
    plain.head = nn.Identity()
    plain.load_state_dict(net.state_dict())
    names = [n for n, _ in net.named_parameters()]
    fast = {"all": names, "last": names[-4:], "none": []}[part]
    algo = ProtoMAML(net, STEPS, meta_sgd(0.1), adapting=None if part == "all" else fast)
    meta = algo.init()
    head = {"rate.prototypes.weight": (1, 1), "rate.prototypes.bias": (1,)}
    assert {n: tuple(t.shape) for n, t in meta["hyper"].items() if "prototypes" in n} == head
    # Logits of prototypes are steep: a tenth of the rates elsewhere.
    meta["hyper"] = {n: t / 10 for n, t in randomised(meta["hyper"]).items()}
    want = plain_gradient(plain, meta["hyper"], episodes, fast)
    for batching in ("loop", "vmap", 2):
        got, _ = on(strategy(), batching)(algo, meta, episodes)
        assert apart(got, want) < 1e-10


def test_before_the_first_step_it_is_protonet():
    net = features()
    support, query, _ = task(classification(ways=WAYS), 0)
    logits = []
    for algo in (ProtoMAML(net), ProtoNet(net)):
        meta = algo.init()
        found = algo.predict(meta, algo.begin(meta, Given(support)), query.x)
        assert found.shape == (6, 6) and (found[:, WAYS:] < -1e300).all()
        logits.append(found.log_softmax(1)[:, :WAYS])
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", [sgd(0.1, weight_decay=0.1), adam(0.1)], ids=["decay", "adam"])
def test_a_class_that_is_not_there_stays_away(rule):
    net = features()
    support, query, _ = task(classification(ways=WAYS), 0)
    algo = ProtoMAML(net, 5, rule)
    meta = algo.init()
    fast = algo.begin(meta, Given(support))
    state = rule.init(fast)
    for _ in range(5):
        grads = torch.func.grad(lambda fast: algo.inner_loss(meta, fast, Given(support), 0))(fast)
        assert (grads["prototypes.weight"][WAYS:] == 0).all()
        assert (grads["prototypes.bias"][WAYS:] == 0).all()
        updates, state = rule.update(grads, state, fast, {})
        fast = {n: w + updates[n] for n, w in fast.items()}
    assert algo.predict(meta, fast, query.x).softmax(1)[:, WAYS:].sum() == 0


def test_a_rule_that_needs_the_size_of_the_head():
    with pytest.raises(UsageError, match="no fixed size; use inner=meta_sgd, lslr or sgd"):
        ProtoMAML(features(), rule=meta_curvature(0.1))
