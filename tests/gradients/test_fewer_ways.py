"""Tasks with fewer classes than the network has outputs, against a plain float64 loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metalearn import Batch, Episodes
from metalearn.algorithms import MAML
from metalearn.algorithms.losses import cross_entropy, present
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import sgd
from tests.tasks import apart, generator, on

WAYS, SHOTS, RATE, STEPS = (4, 2, 3), 2, 0.3, 2


def tasks() -> list[tuple[tuple[torch.Tensor, torch.Tensor], ...]]:
    """By task, support and query: x `[B, 5]` and y `[B]`."""
    g = generator(3)
    return [
        tuple(
            (
                torch.randn(ways * SHOTS, 5, generator=g, dtype=torch.float64),
                torch.arange(ways).repeat(SHOTS),
            )
            for _ in range(2)
        )
        for ways in WAYS
    ]


def padded(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    """One batch; the padding is noise, and labelled as a class that its task may lack."""
    size = max(len(y) for _, y in parts)
    x = torch.full((len(parts), size, 5), 9.0, dtype=torch.float64)
    y = torch.full((len(parts), size), 3)
    weight = torch.zeros(len(parts), size, dtype=torch.float64)
    for t, (images, labels) in enumerate(parts):
        x[t, : len(labels)], y[t, : len(labels)], weight[t, : len(labels)] = images, labels, 1
    return Batch(x, y, weight)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("strategy", [Adjoint, Unroll])
def test_absent_classes_have_no_part(strategy, batching) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    weights = {name: w.detach().requires_grad_() for name, w in net.named_parameters()}
    losses, right = [], []
    for ways, ((x, y), (query, target)) in zip(WAYS, tasks(), strict=True):
        fast = weights
        for _ in range(STEPS):
            loss = F.cross_entropy(functional_call(net, fast, x)[:, :ways], y)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: w - RATE * d for (n, w), d in zip(fast.items(), grads, strict=True)}
        logits = functional_call(net, fast, query)[:, :ways]
        losses.append(F.cross_entropy(logits, target))
        right.append((logits.argmax(1) == target).double().mean())
    mean = torch.stack(losses).mean()
    want = dict(zip(weights, torch.autograd.grad(mean, list(weights.values())), strict=True))

    algo = MAML(net, STEPS, sgd(RATE), loss=present(cross_entropy))
    support, query = zip(*tasks(), strict=True)
    episodes = Episodes(padded(list(support)), padded(list(query)))
    got, metrics = on(strategy(), batching)(algo, algo.init(), episodes)
    assert apart(got, {"init": want, "hyper": {}}) < 1e-12
    torch.testing.assert_close(metrics["loss"], torch.stack(losses).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics["accuracy"], torch.stack(right), rtol=1e-12, atol=0)
