"""R2D2's solution against the normal equations and scikit-learn, its gradient against a plain
float64 loop over the primal form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import nn

from metalearn import Batch, adapt
from metalearn.algorithms import R2D2
from metalearn.algorithms.losses import cross_entropy, mean_squared
from metalearn.backbones import Conv4
from metalearn.errors import UsageError
from metalearn.gradients import Adjoint, Checkpointed, Unroll
from tests.gradients import reference
from tests.tasks import apart, classification, generator, network, on

WAYS = 3


def features() -> nn.Module:
    return network(lambda: Conv4(None, filters=4, size=16))


class Plane(nn.Module):
    """The embedding is the input, times one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.scale * x


@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_is_ridge_regression(weighted):
    g = generator()
    x = torch.randn(7, 5, generator=g, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    weight = torch.tensor([1.0, 0, 1, 1, 0.5, 2, 1], dtype=torch.float64) if weighted else None
    algo = R2D2(Plane(), regularisation=0.3, scale=4.0, bias=0.25)
    meta = algo.init()
    fast = adapt(algo, meta, Batch(x, y, weight))
    hot = np.eye(7)[y.numpy()]
    ridge = Ridge(alpha=0.3, fit_intercept=False)
    ridge.fit(x.numpy(), hot, sample_weight=None if weight is None else weight.numpy())
    np.testing.assert_allclose(fast["ridge"].detach().numpy(), ridge.coef_.T, rtol=1e-9, atol=1e-12)
    queries = torch.randn(4, 5, generator=g, dtype=torch.float64)
    logits = algo.predict(meta, fast, queries).detach().numpy()
    want = 4 * ridge.predict(queries.numpy()) + 0.25
    np.testing.assert_allclose(logits[:, :WAYS], want[:, :WAYS], rtol=1e-9)
    assert (logits[:, WAYS:] < -1e300).all()


def plain_gradient(net, hyper, episodes, squared):
    """W = (X^T X + lambda I)^-1 X^T Y, of the size of the features."""
    hyper = {n: t.clone().requires_grad_() for n, t in hyper.items()}
    losses = []
    for t in range(len(episodes.support.x)):
        x = net(episodes.support.x[t])
        y = F.one_hot(episodes.support.y[t], WAYS).double()
        system = x.T @ x + hyper["log_regularisation"].exp() * torch.eye(x.shape[1]).double()
        w = torch.linalg.inv(system) @ x.T @ y
        logits = hyper["scale"] * net(episodes.query.x[t]) @ w + hyper["bias"]
        target = episodes.query.y[t]
        if squared:
            losses.append(F.mse_loss(logits, F.one_hot(target, WAYS).double()))
        else:
            losses.append(F.cross_entropy(logits, target))
    learned = [*net.parameters(), *hyper.values()]
    grads = torch.autograd.grad(torch.stack(losses).mean(), learned)
    names = [n for n, _ in net.named_parameters()]
    return {
        "init": dict(zip(names, grads, strict=False)),
        "hyper": dict(zip(hyper, grads[len(names) :], strict=True)),
    }


@pytest.mark.parametrize("batching", ["loop", "vmap", 2])
@pytest.mark.parametrize("strategy", [Unroll, Adjoint, Checkpointed])
@pytest.mark.parametrize("squared", [False, True])
def test_agrees_with_the_plain_loop(strategy, batching, squared):
    net, episodes = features(), classification(ways=WAYS)
    plain = reference.PlainConv4("transductive", "pool", WAYS, 4).double()
    plain.head = nn.Identity()
    plain.load_state_dict(net.state_dict())
    loss = mean_squared if squared else cross_entropy
    algo = R2D2(net, regularisation=0.5, scale=2.0, bias=0.3, loss=loss)
    meta = algo.init()
    want = plain_gradient(plain, meta["hyper"], episodes, squared)
    if not squared:
        # Softmax does not see it.
        assert want["hyper"]["bias"].abs() < 1e-12
    got, _ = on(strategy(), batching)(algo, meta, episodes)
    assert apart(got, want) < 1e-10


def test_no_regularisation_is_refused():
    with pytest.raises(UsageError, match="regularisation=0.0 must be above 0"):
        R2D2(Plane(), regularisation=0.0)
