"""ProtoNet's gradient equals a plain loop over tasks and classes."""

import pytest
import torch
import torch.nn.functional as F

from metalearn.algorithms import ProtoNet
from metalearn.backbones import Conv4
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from tests.gradients import reference
from tests.tasks import apart, classification, network, on

WAYS = 3


def plain_logits(net, log_temperature, metric, support, query_x):
    """Class by class and query by query, from the paper's equations 1 and 2."""
    features = net(support[0])
    queries = net(query_x)
    if metric == "cosine":
        features, queries = F.normalize(features, dim=1), F.normalize(queries, dim=1)
    prototypes = [features[support[1] == n].mean(0) for n in range(WAYS)]
    if metric == "cosine":
        rows = [[F.cosine_similarity(q, c, dim=0) for c in prototypes] for q in queries]
    else:
        rows = [[-((q - c) ** 2).sum() for c in prototypes] for q in queries]
    return torch.stack([torch.stack(row) for row in rows]) / log_temperature.exp()


def plain_gradient(net, log_temperature, metric, episodes):
    log_temperature = log_temperature.clone().requires_grad_()
    losses = []
    for (x, y), (query_x, query_y) in zip(
        zip(*episodes.support[:2], strict=True), zip(*episodes.query[:2], strict=True), strict=True
    ):
        logits = plain_logits(net, log_temperature, metric, (x, y), query_x)
        losses.append(F.cross_entropy(logits, query_y))
    learned = [*net.parameters(), log_temperature]
    grads = torch.autograd.grad(torch.stack(losses).mean(), learned)
    names = [n for n, _ in net.named_parameters()]
    return {
        "init": dict(zip(names, grads[:-1], strict=True)),
        "hyper": {"log_temperature": grads[-1]},
    }, torch.stack(losses)


@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Checkpointed])
@pytest.mark.parametrize("batching", ["loop", "vmap", 2, "vmap+im2col"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("norm", ["transductive", "none"])
def test_agrees_with_the_plain_loop(strategy, batching, metric, norm):
    net = network(lambda: Conv4(None, filters=4, size=16, norm=norm))
    plain = reference.PlainConv4(norm, "pool", WAYS, 4).double()
    plain.head = torch.nn.Identity()
    plain.load_state_dict(net.state_dict())
    episodes = classification(ways=WAYS)
    algo = ProtoNet(net, distance=metric, temperature=0.7, learn_temperature=True)
    meta = algo.init()
    want, losses = plain_gradient(plain, meta["hyper"]["log_temperature"], metric, episodes)
    got, metrics = on(strategy(), batching)(algo, meta, episodes)
    assert apart(got, want) < 1e-10
    torch.testing.assert_close(metrics["loss"], losses.detach(), rtol=1e-10, atol=0)
