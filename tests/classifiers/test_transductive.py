"""Transductive classifiers against plain loops of numpy and scipy, and on tasks with noise."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from metalearn.classifiers import (
    BDCSPN,
    PTMAP,
    TIM,
    AlphaTIM,
    Centroid,
    LaplacianShot,
    TransductiveFineTuning,
)  # fmt: skip
from metalearn.engine import Engine
from metalearn.evaluation import evaluate
from metalearn.evaluation.on_features import classifying
from metalearn.types import Batch, Episodes
from tests.tasks import generator

SIZE, WAYS = 6, 3
Y = np.array([0, 1, 2, 0, 1, 2, 2])
G = generator(3)
X = torch.rand(len(Y), SIZE, generator=G, dtype=torch.float64) + torch.eye(SIZE)[Y]
QUERY = (
    torch.rand(9, SIZE, generator=G, dtype=torch.float64)
    + torch.eye(SIZE)[[0, 0, 0, 0, 1, 1, 2, 2, 0]]
)
SUPPORT, UNLABELLED = Batch(X, torch.tensor(Y)), Batch(QUERY, torch.zeros(9, dtype=torch.int64))
x, query, hot = X.numpy(), QUERY.numpy(), np.eye(WAYS)[Y]


def logits(classifier) -> np.ndarray:
    state = classifier.fit({}, SUPPORT, UNLABELLED)
    return classifier.logits({}, state, QUERY)[:, :WAYS].numpy()


def unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(2)


def means(a: np.ndarray) -> np.ndarray:
    return np.stack([a[n == Y].mean(0) for n in range(WAYS)])


def close(found: np.ndarray, want: np.ndarray, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


def shannon(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1)


def tsallis(p: np.ndarray) -> np.ndarray:
    return (1 - (p**2.5).sum(-1)) / 1.5


def adam(loss, start: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """By slopes of finite differences."""
    w, m, v = start.copy(), 0.0, 0.0
    for t in range(1, steps + 1):
        slope = np.zeros_like(w)
        for place in np.ndindex(*w.shape):
            near = np.zeros_like(w)
            near[place] = 1e-5
            slope[place] = (loss(w + near) - loss(w - near)) / 2e-5
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def squared_logits(w: np.ndarray, z: np.ndarray) -> np.ndarray:
    return -2.0 * squared(z, w)


def cosine_logits(w: np.ndarray, z: np.ndarray) -> np.ndarray:
    return 4 * z @ unit(w).T


@pytest.mark.parametrize(
    ("made", "entropy", "scores", "weights"),
    [
        (TIM(5, 0.02, 4.0), shannon, squared_logits, (0.1, 0.1)),
        (TIM(5, 0.02, 4.0, 0.5, 0.2, similarity="cosine"), shannon, cosine_logits, (0.5, 0.2)),
        (AlphaTIM(5, 0.02, 4.0, order=2.5, ways=3), tsallis, squared_logits, (1.0, 1.0)),
    ],
    ids=["tim", "cosine", "alpha_tim"],
)
def test_tim_descends_on_its_loss(made, entropy, scores, weights) -> None:
    z, own = unit(query), unit(x)

    def loss(w: np.ndarray) -> float:
        p = softmax(scores(w, z), 1)
        error = -(hot * log_softmax(scores(w, own), 1)).sum(1).mean()
        return weights[0] * error - entropy(p.mean(0)) + weights[1] * entropy(p).mean()

    start = means(own)
    w = adam(loss, start, 0.02, 5)
    found, want = logits(made), scores(w, z)
    close(softmax(found, 1), softmax(want, 1), 1e-5)
    assert abs(w - start).max() > 0.05


def test_fine_tuning_descends_on_errors_and_entropy() -> None:
    z, own = unit(query), unit(x)

    def loss(w: np.ndarray) -> float:
        error = -(hot * log_softmax(4 * own @ w.T, 1)).sum(1).mean()
        return error + shannon(softmax(4 * z @ w.T, 1)).mean()

    w = adam(loss, unit(means(own)), 0.02, 5)
    close(logits(TransductiveFineTuning(5, 0.02, 0.25)), 4 * z @ w.T, 1e-5)


def rectified(own: np.ndarray, z: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    z = z + own.mean(0) - z.mean(0)
    c = unit(means(own))
    every = np.concatenate([own, z])
    labels = np.concatenate([Y, (unit(z) @ c.T).argmax(1)])
    weights = np.exp(scale * (unit(every) @ c.T))
    found = [
        (weights[labels == n, n, None] * every[labels == n]).sum(0) / weights[labels == n, n].sum()
        for n in range(WAYS)
    ]
    return np.stack(found), z


@pytest.mark.parametrize("shifted", [True, False])
def test_bd_cspn_rectifies_class_means(shifted: bool) -> None:
    c, z = rectified(unit(x), unit(query), 10.0)
    z = z if shifted else query
    close(logits(BDCSPN(shifted=shifted, temperature=0.5)), 2 * unit(z) @ unit(c).T)


@pytest.mark.parametrize(("neighbours", "scale"), [(1, 0.0), (3, 1.0), (20, 1.0)])
def test_laplacian_shot_is_its_bound_update(neighbours: int, scale: float) -> None:
    z = unit(query)
    c = rectified(unit(x), z, scale)[0] if scale else means(unit(x))
    gaps = squared(z, z)
    np.fill_diagonal(gaps, np.inf)
    near = np.zeros_like(gaps)
    for j, row in enumerate(gaps):
        near[j, np.argsort(row)[: min(neighbours, len(z) - 1)]] = 1
    away = -squared(z, c)
    y = softmax(away, 1)
    for _ in range(6):
        scores = away + 0.4 * near @ y
        y = softmax(scores, 1)
    close(logits(LaplacianShot(neighbours, 0.4, 6, scale)), scores)


def transport(costs: np.ndarray) -> np.ndarray:
    """By the dual, whose maximum scipy finds."""
    wanted = len(costs) / WAYS

    def dual(b: np.ndarray) -> tuple[float, np.ndarray]:
        p = softmax(b - costs, 1)
        peak = (b - costs).max(1, keepdims=True)
        total = peak[:, 0] + np.log(np.exp(b - costs - peak).sum(1))
        return total.sum() - wanted * b.sum(), p.sum(0) - wanted

    best = minimize(dual, np.zeros(WAYS), jac=True, method="BFGS", options={"gtol": 1e-11})
    return softmax(best.x - costs, 1)


@pytest.mark.parametrize("unit_length", [True, False])
def test_pt_map_transports_the_queries_to_classes_of_equal_size(unit_length: bool) -> None:
    def even(a: np.ndarray) -> np.ndarray:
        return unit((a + 1e-6) ** 0.5) if unit_length else (a + 1e-6) ** 0.5

    own, z, c = even(x), even(query), means(even(x))
    for _ in range(4):
        p = transport(10 * squared(z, c))
        new = (hot.T @ own + p.T @ z) / (hot.sum(0) + p.sum(0))[:, None]
        c = c + 0.2 * (new - c)
    want = transport(10 * squared(z, c))
    found = softmax(logits(PTMAP(steps=4, sinkhorn=200, unit_length=unit_length)), 1)
    close(found, want, 1e-6)
    close(found.sum(0), np.full(WAYS, 3.0), 1e-6)
    # The usual iterations, from where the last step ended, come as far.
    close(
        softmax(logits(PTMAP(steps=20, sinkhorn=20, unit_length=unit_length)), 1).sum(0),
        found.sum(0),
        1e-4,
    )


ALL = (
    *(TIM(20, 1e-2), AlphaTIM(20, 1e-2), PTMAP(sinkhorn=5), LaplacianShot(), BDCSPN()),
    TransductiveFineTuning(20, 3e-3),
)
NAMES = ("tim", "alpha_tim", "pt_map", "laplacian_shot", "bd_cspn", "fine_tuning")


def test_a_class_that_is_not_there_takes_nothing_however_far_it_would_be() -> None:
    x = 30 * torch.rand(4, SIZE, generator=generator(1))
    support, more = (
        Batch(x, torch.tensor([0, 0, 2, 2])),
        Batch(30 * torch.rand(5, SIZE, generator=G), None),
    )
    for made in (*ALL, PTMAP(unit_length=False)):
        state = made.fit({}, support, more)
        found = made.logits({}, state, more.x)
        assert found.isfinite().all() and set(found.argmax(1).tolist()) <= {0, 2}, made


VMAP = Engine("vmap")


def drawn() -> Episodes:
    """40 tasks of four classes along axes, ten queries a class, with noise."""
    g, parts = generator(7), []
    for labels in (torch.arange(4), torch.arange(4).repeat(10)):
        y = labels.repeat(40, 1)
        parts.append(Batch(torch.eye(8)[y] + torch.randn(*y.shape, 8, generator=g).abs() / 2, y))
    return Episodes(*parts)


@pytest.mark.parametrize("made", ALL, ids=NAMES)
def test_they_are_ahead_of_class_means_and_never_look_at_the_queries_labels(made) -> None:
    episodes, plain = drawn(), Centroid()
    ahead = [
        evaluate(*classifying(one), episodes, engine=VMAP).accuracy.mean for one in (made, plain)
    ]
    assert made.transductive and ahead[0] > ahead[1] > 0.5
    # All queries labelled as class n: what is right of them is how often n is said.
    few = episodes.map(lambda t: t[:4])
    every = [
        evaluate(*classifying(made), few._replace(query=other), engine=VMAP).accuracies
        for n in (*range(4), 0)
        for other in [few.query._replace(y=torch.full_like(few.query.y, n))]
    ]
    np.testing.assert_allclose(sum(every[:4]), 1, atol=1e-6)
    assert (every[0] == every[4]).all()
