"""A classifier trained end to end, against plain float64 loops; what a transductive one sees."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import Batch, Episodes, evaluate
from metalearn.algorithms import R2D2, Metric, ProtoNet, SoftKMeans
from metalearn.classifiers import Centroid, Cosine, LogisticRegression, Ridge
from metalearn.gradients import Unroll
from metalearn.types import Given
from tests.tasks import apart, classification, network, on, task

WAYS = 3


def net() -> nn.Module:
    return network(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)))


def episodes() -> Episodes:
    return classification(3, WAYS, 2, 7, (4,))


def test_the_named_methods_are_metrics_with_their_old_names_and_values() -> None:
    assert ProtoNet(net(), "euclidean", 2.0).classifier == Centroid(2.0)
    cosine = ProtoNet(net(), "cosine", 0.1, learn_temperature=True)
    assert cosine.classifier == Cosine(0.1, True)
    assert R2D2(net(), 0.5, 2.0, 0.3).classifier == Ridge(0.5, 2.0, 0.3)
    found = R2D2(net().float(), 0.5, 2.0, 0.3).init()["hyper"]
    assert {name: (t.dtype, t.item()) for name, t in found.items()} == {
        "log_regularisation": (torch.float32, torch.tensor(0.5).log().item()),
        "scale": (torch.float32, 2.0),
        "bias": (torch.float32, torch.tensor(0.3).item()),
    }
    (log,) = cosine.init()["hyper"].values()
    assert log == torch.tensor(0.1, dtype=torch.float64).log() and log.dtype == torch.float64


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_logistic_regression_is_differentiated_as_its_own_minimum(batching: str) -> None:
    """Against implicit differentiation of the minimum that torch's LBFGS finds."""
    module, tasks, strength = net(), episodes(), 2.0
    algo = Metric(module, LogisticRegression(strength, ways=WAYS))
    parameters = list(module.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for number in range(3):
        (x, y, _), (q, truth, _), _ = task(tasks, number)
        size = module(x).shape[1] + 1

        def inner(theta: torch.Tensor, features: torch.Tensor, y=y) -> torch.Tensor:
            w, b = theta[:, :-1], theta[:, -1]
            return w.square().sum() / 2 + strength * F.cross_entropy(
                features @ w.T + b, y, reduction="sum"
            )

        features, queries = module(x), module(q)
        theta = torch.zeros(WAYS, size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(theta=theta, features=features, optimizer=optimizer):
            optimizer.zero_grad()
            loss = inner(theta, features.detach())
            loss.backward()
            return loss

        optimizer.step(closure)
        best = theta.detach().requires_grad_()
        loss = F.cross_entropy(queries @ best[:, :-1].T + best[:, -1], truth)
        (v,) = torch.autograd.grad(loss, best, retain_graph=True)
        of_theta = functools.partial(inner, features=features.detach())
        hessian = torch.autograd.functional.hessian(of_theta, best.detach())
        hessian = hessian.reshape(best.numel(), best.numel())
        solved = (torch.linalg.pinv(hessian) @ v.flatten()).view_as(best)
        (gradient,) = torch.autograd.grad(inner(best, features), best, create_graph=True)
        for whole, direct, through in zip(
            total,
            torch.autograd.grad(loss, parameters, retain_graph=True),
            torch.autograd.grad((gradient * solved).sum(), parameters),
            strict=True,
        ):
            whole += (direct - through) / 3
    names = [name for name, _ in module.named_parameters()]
    want = {"init": dict(zip(names, total, strict=True)), "hyper": {}}
    got, _ = on(Unroll(), batching)(algo, algo.init(), tasks)
    assert apart(got, want) < 1e-7


def plain_soft_k_means(module: nn.Module, tasks: Episodes) -> tuple[dict, torch.Tensor]:
    """The meta-gradient of one refinement by the queries, and the losses."""
    losses = []
    for number in range(3):
        (x, y, _), (q, truth, _), _ = task(tasks, number)
        x, q, hot = module(x), module(q), F.one_hot(y, WAYS).double()
        share = (-(torch.cdist(q, (hot.T @ x) / hot.sum(0)[:, None]) ** 2)).softmax(1)
        means = (hot.T @ x + share.T @ q) / (hot.sum(0) + share.sum(0))[:, None]
        losses.append(F.cross_entropy(-(torch.cdist(q, means) ** 2), truth))
    found = torch.stack(losses)
    grads = torch.autograd.grad(found.mean(), list(module.parameters()))
    names = [name for name, _ in module.named_parameters()]
    return {"init": dict(zip(names, grads, strict=True)), "hyper": {}}, found.detach()


@pytest.mark.parametrize("batching", ["loop", "vmap", 2])
def test_soft_k_means_sees_the_queries_in_training_and_in_evaluation(batching) -> None:
    module, tasks = net(), episodes()
    algo = SoftKMeans(module)
    want, losses = plain_soft_k_means(module, tasks)
    got, metrics = on(Unroll(), batching)(algo, algo.init(), tasks)
    assert apart(got, want) < 1e-10
    torch.testing.assert_close(metrics["loss"], losses)
    report = evaluate(algo, algo.init(), tasks)
    torch.testing.assert_close(torch.from_numpy(report.losses), losses)
    inductive = evaluate(ProtoNet(module), algo.init(), tasks)
    assert abs(inductive.losses - report.losses).min() > 1e-3
    assert algo.transductive and not ProtoNet(module).transductive


def test_padded_queries_refine_nothing() -> None:
    support, query, _ = episodes()
    far = torch.full((3, 2, 4), 9.0, dtype=torch.float64)
    weight = torch.ones(3, 9, dtype=torch.float64)
    weight[:, 7:] = 0
    padded = Batch(torch.cat([query.x, far], 1), torch.cat([query.y, query.y[:, :2]], 1), weight)
    algo = SoftKMeans(net())
    want = evaluate(algo, algo.init(), Episodes(support, query))
    found = evaluate(algo, algo.init(), Episodes(support, padded))
    torch.testing.assert_close(torch.from_numpy(found.losses), torch.from_numpy(want.losses))


@pytest.mark.parametrize("classifier", [Cosine(0.3), Ridge(0.5, 2.0), LogisticRegression(2.0)])
def test_on_features_it_is_the_same_classifier(classifier) -> None:
    algo = Metric(net(), classifier)
    meta, (support, query, _) = algo.init(), task(episodes(), 0)
    found = algo.on_features()
    assert found.path is None
    alone = {"init": {}, "hyper": meta["hyper"], "buffers": {}}
    on_features = support._replace(x=algo.net.apply(meta["init"], support.x))
    fast = found.algo.begin(alone, Given(on_features))
    got = found.algo.predict(alone, fast, algo.net.apply(meta["init"], query.x))
    want = algo.predict(meta, algo.begin(meta, Given(support)), query.x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
