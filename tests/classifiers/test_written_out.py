"""Gradients that are written out are those of autograd, and two ways to one minimum agree."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad

from metalearn.classifiers import (
    FEAT,
    TIM,
    LinearProbe,
    LogisticRegression,
    Matching,
    Relation,
    TransductiveFineTuning,
    logistic_primal,
)
from metalearn.engine import Engine
from metalearn.evaluation import evaluate
from metalearn.evaluation.comparison.learned import draws_weights, trained
from metalearn.evaluation.on_features import classifying
from metalearn.inner import adam, adamw, sgd
from metalearn.types import Batch, Episodes, Params
from tests.tasks import generator

G = generator(3)
X = torch.randn(7, 4, generator=G, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 2])
WEIGHT = torch.tensor([1, 1, 1, 2, 0, 1, 1]).double()
Z = Batch(
    torch.randn(6, 4, generator=G, dtype=torch.float64),
    torch.zeros(6, dtype=torch.int64),
    torch.tensor([1, 1, 0, 1, 1, 3]).double(),
)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def entropy(p: Tensor, order: float) -> Tensor:
    if order == 1:
        return -(p * p.log()).sum(-1)
    return (1 - p.pow(order).sum(-1)) / (order - 1)


def means(x: Tensor) -> Tensor:
    hot = torch.nn.functional.one_hot(Y, 3).double() * WEIGHT.unsqueeze(1)
    return hot.T @ x / hot.sum(0).unsqueeze(1)


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    assert weight is not None
    return (values * weight).sum() / weight.sum()


def by_autograd(loss: Callable[[Params], Tensor], start: Params, rule, steps: int) -> Params:
    fast, state = start, rule.init(start)
    for _ in range(steps):
        updates, state = rule.update(grad(loss)(fast), state, fast, {})
        fast = {name: t + updates[name] for name, t in fast.items()}
    return fast


@pytest.mark.parametrize(
    ("order", "similarity"), [(1.0, "squared"), (2.0, "squared"), (7.0, "squared"), (1.0, "cosine")]
)
def test_tim_descends_as_by_autograd(order: float, similarity) -> None:
    method = TIM(4, 0.02, 3.0, 0.3, 0.6, order, similarity, ways=3)

    def scores(w: Tensor, z: Tensor) -> Tensor:
        if similarity == "cosine":
            return 3.0 * unit(w) @ unit(z).T
        return -1.5 * torch.cdist(w, unit(z)) ** 2

    def loss(fast: Params) -> Tensor:
        w = fast["w"]
        error = -scores(w, X).T.log_softmax(1)[torch.arange(7), Y]
        p = scores(w, Z.x).T.softmax(1)
        part = Z.weight / Z.weight.sum()
        information = entropy(part @ p, order) - 0.6 * part @ entropy(p, order)
        return 0.3 * weighted(error, WEIGHT) - information

    want = by_autograd(loss, {"w": means(unit(X))}, adam(0.02), 4)["w"]
    found = method.fit({}, Batch(X, Y, WEIGHT), Z)["prototypes"][:3]
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-8)


def test_transductive_fine_tuning_descends_as_by_autograd() -> None:
    def loss(fast: Params) -> Tensor:
        error = -(unit(X) @ fast["w"].T / 0.5).log_softmax(1)[torch.arange(7), Y]
        p = (unit(Z.x) @ fast["w"].T / 0.5).softmax(1)
        return weighted(error, WEIGHT) + weighted(entropy(p, 1), Z.weight)

    want = by_autograd(loss, {"w": unit(means(unit(X)))}, adam(0.05), 4)["w"]
    method = TransductiveFineTuning(4, 0.05, 0.5, ways=3)
    found = method.fit({}, Batch(X, Y, WEIGHT), Z)["weight"][:3]
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", [adamw(0.1, weight_decay=0.1), sgd(0.5)])
def test_a_linear_probe_descends_as_by_autograd(rule) -> None:
    def loss(fast: Params) -> Tensor:
        logits = X @ fast["weight"].T + fast["bias"]
        return weighted(-logits.log_softmax(1)[torch.arange(7), Y], WEIGHT)

    zero = {"weight": torch.zeros(3, 4).double(), "bias": torch.zeros(3).double()}
    want = by_autograd(loss, zero, rule, 5)
    found = LinearProbe(rule, 5, ways=3).fit({}, Batch(X, Y, WEIGHT))
    for name, value in want.items():
        torch.testing.assert_close(found[name][:3], value, rtol=1e-6, atol=1e-8)


def test_logistic_regression_in_its_weights_is_that_in_the_span(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert logistic_primal.cheaper(275, 64, 5) and not logistic_primal.cheaper(25, 64, 5)
    y = torch.arange(40) % 3
    x = torch.randn(40, 4, generator=generator(5), dtype=torch.float64) + y.unsqueeze(1)
    weight = torch.ones(40).double()
    weight[:3] = torch.tensor([0, 2, 0.5])
    found = {}
    for primal in (True, False):
        monkeypatch.setattr(logistic_primal, "cheaper", lambda *sizes, primal=primal: primal)
        for ways in (3, 5):  # two of them not there
            method = LogisticRegression(3.0, ways=ways)
            found[primal, ways] = method.fit({}, Batch(x, y, weight))
    for ways in (3, 5):
        for name in ("weight", "bias"):
            a, b = (found[primal, ways][name] for primal in (True, False))
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def episodes(tasks: int, seed: int) -> Episodes:
    """Features in single precision, whose last half is noise."""
    g = generator(seed)

    def batch(each: int) -> Batch:
        y = torch.arange(3).repeat(each).repeat(tasks, 1)
        near = centres.gather(1, y.unsqueeze(2).expand(*y.shape, 8))
        return Batch(near + torch.randn(*y.shape, 8, generator=g) * scale, y)

    centres = torch.randn(tasks, 3, 8, generator=g)
    scale = torch.tensor([0.4] * 4 + [3.0] * 4)
    return Episodes(batch(2), batch(4))


@pytest.mark.parametrize("made", [Relation(width=8), FEAT(8.0), Matching(full_context=True)])
def test_a_classifier_that_draws_weights_learns_on_features(made) -> None:
    head, test = classifying(made, 8), episodes(60, 1)
    assert draws_weights(head) and not draws_weights(classifying(Matching(), 8))
    before = evaluate(*head, test, engine=Engine("vmap")).accuracy.mean
    after = trained(head, [episodes(16, 10 + n) for n in range(40)], 0.01)
    assert evaluate(*after, test, engine=Engine("vmap")).accuracy.mean > before + 0.03
