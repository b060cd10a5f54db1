"""Each classifier against its closed form in numpy, scikit-learn or a plain loop of torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.linear_model import Ridge as TheirRidge

from metalearn.classifiers import (
    Centroid,
    Cosine,
    LinearProbe,
    LogisticRegression,
    Ridge,
    SoftKMeans,
)  # fmt: skip
from metalearn.inner import adamw, momentum, sgd
from metalearn.types import Batch
from tests.tasks import generator

SIZE, WAYS = 6, 3
Y = [0, 1, 2, 0, 1, 2, 2]


def features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, SIZE, generator=generator(seed), dtype=torch.float64)


X, QUERY, OTHERS = features(len(Y)), features(5, 1), features(4, 2)
SUPPORT = Batch(X, torch.tensor(Y))
x, query, others, y = X.numpy(), QUERY.numpy(), OTHERS.numpy(), np.array(Y)
MEANS = np.stack([x[y == n].mean(0) for n in range(WAYS)])


def logits(classifier, support: Batch = SUPPORT, unlabelled: Batch | None = None) -> np.ndarray:
    hyper = classifier.hyper(SIZE)
    found = classifier.logits(hyper, classifier.fit(hyper, support, unlabelled), QUERY)
    return found[:, :WAYS].numpy()


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(2)


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def close(found: np.ndarray, want: np.ndarray, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("learned", [False, True])
def test_centroids_are_class_means(learned: bool) -> None:
    close(logits(Centroid(2.5, learned)), -squared(query, MEANS) / 2.5)


@pytest.mark.parametrize("classifier", [Centroid(), SoftKMeans()])
def test_distances_lose_no_digits_far_from_0(classifier) -> None:
    """Classes that are not there have means of 0, which are not near."""
    far = SUPPORT._replace(x=(X + 3000).float())
    state = classifier.fit({}, far, far)
    found = classifier.logits({}, state, (QUERY + 3000).float())[:, :WAYS]
    near = classifier.fit({}, SUPPORT, SUPPORT)
    want = classifier.logits({}, near, QUERY)[:, :WAYS]
    torch.testing.assert_close(found.double(), want, rtol=1e-2, atol=1e-2)


def test_the_cosine_is_of_means_of_unit_vectors_or_of_means_as_they_are() -> None:
    means = np.stack([unit(x)[y == n].mean(0) for n in range(WAYS)])
    close(logits(Cosine(0.1, True)), 10 * unit(query) @ unit(means).T)
    close(logits(Cosine(0.1, of_unit_length=False)), 10 * unit(query) @ unit(MEANS).T)
    assert abs(unit(means) - unit(MEANS)).max() > 1e-2


@pytest.mark.parametrize("refinements", [1, 3])
def test_soft_k_means_is_the_loop_of_the_paper(refinements: int) -> None:
    means = MEANS
    for _ in range(refinements):
        share = np.exp(-squared(others, means) / 4)
        share /= share.sum(1, keepdims=True)
        means = np.stack(
            [
                (x[y == n].sum(0) + (share[:, n, None] * others).sum(0))
                / ((y == n).sum() + share[:, n].sum())
                for n in range(WAYS)
            ]
        )
    more = Batch(OTHERS, torch.zeros(len(OTHERS), dtype=torch.int64))
    found = logits(SoftKMeans(refinements, 4.0), unlabelled=more)
    close(found, -squared(query, means) / 4)
    assert abs(found - logits(Centroid(4.0))).max() > 1e-2
    close(logits(SoftKMeans(refinements, 4.0)), logits(Centroid(4.0)))


WEIGHT = [1.0, 0.0, 1.0, 1.0, 0.5, 2.0, 1.0]


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_ridge_is_scikit_learns(weight: list[float] | None) -> None:
    ridge = TheirRidge(alpha=0.3, fit_intercept=False)
    ridge.fit(x, np.eye(WAYS)[y], sample_weight=weight)
    given = SUPPORT._replace(weight=None if weight is None else torch.tensor(weight).double())
    close(logits(Ridge(0.3, scale=4.0, bias=0.25), given), 4 * ridge.predict(query) + 0.25)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("ways", [None, WAYS])
def test_logistic_regression_is_scikit_learns(
    weight: list[float] | None, strength: float, ways: int | None
) -> None:
    theirs = Theirs(C=strength, max_iter=100_000, tol=1e-13, solver="newton-cg")
    theirs.fit(x, y, sample_weight=weight)
    given = SUPPORT._replace(weight=None if weight is None else torch.tensor(weight).double())
    state = LogisticRegression(strength, ways=ways).fit({}, given)
    close(state["weight"][:, :WAYS].T.numpy(), theirs.coef_, 1e-6)
    # What all classes share is free.
    close(
        state["bias"][:WAYS].numpy(),
        np.subtract(theirs.intercept_, np.mean(theirs.intercept_)),
        1e-6,
    )
    close(state["bias"].sum().numpy(), np.zeros(()), 1e-9)
    assert state["weight"].shape == (SIZE, len(Y)) and (state["weight"][:, WAYS:] == 0).all()


@pytest.mark.parametrize(
    ("ways", "shots", "size", "strength", "scale"),
    [(5, 1, 64, 1.0, 1.0), (20, 5, 16, 1.0, 1.0), (5, 5, 64, 1e4, 1.0), (5, 5, 64, 1.0, 30.0),
     (2, 3, 4, 1e3, 3.0), (1, 3, 4, 1.0, 1.0)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_regression_ends_where_the_gradient_is_0(
    ways: int, shots: int, size: int, strength: float, scale: float, dtype: torch.dtype
) -> None:
    g = generator(ways)
    y = torch.arange(ways).repeat(shots)
    x = scale * torch.randn(len(y), size, generator=g, dtype=torch.float64)
    state = LogisticRegression(strength, ways=ways).fit({}, Batch(x.to(dtype), y))
    w, b = state["weight"][:, :ways].double(), state["bias"][:ways].double()
    rest = (x @ w + b).softmax(1) - F.one_hot(y, ways)
    gradient = w + strength * x.T @ rest
    close = 1e-9 if dtype == torch.float64 else 2e-5
    # Against the two terms that cancel.
    assert (gradient.norm() <= close * strength * scale * len(y)).item()
    assert (strength * rest.sum(0)).norm() <= close * strength * len(y)
    assert ways == 1 or w.norm() > 1e-2 / scale


@pytest.mark.parametrize(
    ("rule", "optimizer", "options"),
    [
        (sgd(0.3, weight_decay=0.1), torch.optim.SGD, {"lr": 0.3, "weight_decay": 0.1}),
        (momentum(0.1, 0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (adamw(0.05, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    ],
    ids=["sgd", "momentum", "adamw"],
)
@pytest.mark.parametrize("ways", [None, WAYS])
def test_a_linear_probe_is_a_plain_loop_of_torch_optim(
    rule, optimizer, options, ways: int | None
) -> None:
    layer = torch.nn.Linear(SIZE, WAYS, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    made = optimizer(layer.parameters(), **options)
    for _ in range(9):
        made.zero_grad()
        F.cross_entropy(layer(X), SUPPORT.y).backward()
        made.step()
    # Our AdamW has its epsilon of 1e-8 under the root.
    tolerance = 1e-6 if optimizer is torch.optim.AdamW else 1e-10
    close(logits(LinearProbe(rule, 9, ways)), layer(QUERY).detach().numpy(), tolerance)
