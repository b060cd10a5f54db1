"""Every score against its definition: written out plainly, maximised numerically, or a case that is
known in closed form."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr, weightedtau
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from metalearn.data import DataError
from metalearn.evaluation.selection.agreement import agreement
from metalearn.evaluation.selection.scores import (
    SCORES,
    h_score,
    leep,
    logme,
    n_leep,
    nce,
    parc,
    sfda,
    shrunk_h_score,
)


def drawn(n: int = 30, d: int = 4, classes: int = 3, seed: int = 0, apart: float = 1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    labels[: n // 10] = 0  # classes of unequal size
    return apart * rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d)), labels


def source(n: int = 30, z: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = drawn(n, z, seed=seed)
    theta = np.exp(2 * logits)
    return theta / theta.sum(1, keepdims=True), labels


@pytest.mark.parametrize(("n", "d"), [(30, 4), (12, 20)])
def test_logme_is_the_highest_evidence(n: int, d: int) -> None:
    x, labels = drawn(n, d, apart=2)
    total = 0.0
    for c in range(3):
        y = (labels == c).astype(float)

        def loss(logs: np.ndarray, y: np.ndarray = y) -> float:
            cov = x @ x.T / np.exp(logs[0]) + np.eye(n) / np.exp(logs[1])
            return -multivariate_normal.logpdf(y, np.zeros(n), cov, allow_singular=True)

        starts = [(a, b) for a in (-2.0, 2.0, 6.0) for b in (0.0, 3.0)]
        box = [(-12, 35), (-12, 35)]
        options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 2000}
        found = (
            minimize(loss, s, method="Nelder-Mead", bounds=box, options=options).fun for s in starts
        )
        total -= min(found) / n
    assert logme(x, labels) == pytest.approx(total / 3, abs=1e-7)


def test_h_score_is_its_definition() -> None:
    x, labels = drawn()
    means = np.stack([x[labels == y].mean(0) for y in labels])  # E[f | y] of every example
    want = np.trace(np.linalg.inv(np.cov(x.T, bias=True)) @ np.cov(means.T, bias=True))
    assert h_score(x, labels) == pytest.approx(want, rel=1e-10)
    # Of more features than examples it is C - 1, which the shrunk one is not.
    x, labels = drawn(12, 40)
    assert h_score(x, labels) == pytest.approx(2, rel=1e-9)
    apart, _ = drawn(12, 40, apart=4)
    assert shrunk_h_score(x, labels) < shrunk_h_score(apart, labels) < 2


def test_leep_and_nce_are_their_sums() -> None:
    theta, labels = source()
    n, z = theta.shape
    joint = np.zeros((3, z))
    for i in range(n):
        joint[labels[i]] += theta[i] / n
    told = joint / joint.sum(0)
    want = np.mean(
        [np.log(sum(told[labels[i], k] * theta[i, k] for k in range(z))) for i in range(n)]
    )
    assert leep(theta, labels) == pytest.approx(want, abs=1e-12)
    named = theta.argmax(1)
    want = 0.0
    for i in range(n):
        same = named == named[i]
        want += np.log(((labels == labels[i]) & same).sum() / same.sum()) / n
    assert nce(theta, labels) == pytest.approx(want, abs=1e-12)
    # A source class for each label tells all, one for all of them what is known without it.
    shares = np.bincount(labels) / n
    entropy = (shares * np.log(shares)).sum()
    for score in (leep, nce):
        assert score(np.eye(7)[labels + 2], labels) == pytest.approx(0, abs=1e-12)
        assert score(np.ones((n, 1)), labels) == pytest.approx(entropy, abs=1e-12)
        assert score(np.eye(2)[[1] * n], labels) == pytest.approx(entropy, abs=1e-12)


def test_n_leep_is_leep_of_a_mixture() -> None:
    x, labels = drawn(60, 6, apart=3)
    reduced = PCA(0.8, svd_solver="full").fit_transform(x)
    reduced /= reduced.std(0).max()
    mixture = GaussianMixture(15, covariance_type="diag", random_state=0).fit(reduced)
    want = leep(mixture.predict_proba(reduced), labels)
    assert n_leep(x, labels) == pytest.approx(want, abs=1e-12)
    assert n_leep(1e3 * x, labels) == pytest.approx(want, abs=1e-6)
    assert n_leep(np.ones((60, 6)), labels) == leep(np.ones((60, 1)), labels)


def test_parc_is_spearmans_correlation_of_pairs() -> None:
    x, labels = drawn()
    scaled = (x - x.mean(0)) / x.std(0)
    features, others = [], []
    for i in range(len(x)):
        for j in range(i):
            features.append(1 - np.corrcoef(scaled[i], scaled[j])[0, 1])
            others.append(float(labels[i] != labels[j]))
    want = 100 * spearmanr(features, others).statistic
    assert parc(x, labels) == pytest.approx(want, abs=1e-9)
    assert parc(np.ones((6, 3)), np.arange(6) % 2) == 0


@pytest.mark.parametrize("d", [4, 40])
def test_sfda_is_a_bayes_rule_in_fishers_space(d: int) -> None:
    x, labels = drawn(30, d, apart=0.5)
    x = x / 4

    def own(x: np.ndarray, strength: float) -> np.ndarray:
        """By the generalised eigenvectors themselves and Gaussians of unit variance."""
        means = np.stack([x[labels == c].mean(0) for c in range(3)])
        shares = np.bincount(labels) / len(x)
        within = np.cov((x - means[labels]).T, bias=True)
        between = (means - x.mean(0)).T @ np.diag(shares) @ (means - x.mean(0))
        within = (1 - strength) * within + strength * np.eye(d)
        _, u = eigh(between, within)
        u = u[:, -2:]  # C - 1 directions tell all there is
        density = np.stack([multivariate_normal(m @ u).pdf(x @ u) for m in means], 1) * shares
        return (density / density.sum(1, keepdims=True))[np.arange(len(x)), labels]

    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    largest = np.linalg.eigvalsh(np.cov((x - means[labels]).T, bias=True))[-1]
    strength = np.exp(-5 * largest)
    sure = own(x, strength)
    others = np.stack([x[labels != y].mean(0) for y in labels])
    mixed = sure[:, None] * x + (1 - sure[:, None]) * others
    want = np.log(own(mixed, strength)).mean()
    assert sfda(x, labels) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_a_score_rises_with_what_the_features_tell(name: str) -> None:
    made: Callable[..., tuple[np.ndarray, np.ndarray]] = drawn
    if SCORES[name].needs == "probabilities":

        def made(n: int, d: int, apart: float):
            logits, labels = drawn(n, d, apart=apart)
            theta = torch.tensor(logits).softmax(1).numpy()
            return theta, labels

    found = [SCORES[name].of(*made(60, 8, apart=apart)) for apart in (0.0, 1.5, 4.0)]
    assert found == sorted(found) and found[0] < found[2]
    x, labels = made(60, 8, apart=1.5)
    # Neither float32 nor the names of the classes make a difference.
    again = SCORES[name].of(x.astype(np.float32), 10 - 3 * labels)
    assert again == pytest.approx(found[1], rel=1e-3, abs=1e-3)


def test_what_cannot_be_scored_is_told() -> None:
    x, labels = drawn()
    for name, score in SCORES.items():
        with pytest.raises(DataError, match="two classes or more, not of 1"):
            score.of(x, np.zeros(30))
        with pytest.raises(DataError, match="needs finite features"):
            score.of(x * np.nan, labels)
        with pytest.raises(DataError, match="features \\[n, D\\] and labels \\[n\\]"):
            score.of(x[:9], labels)
        if score.needs == "probabilities":
            with pytest.raises(DataError, match="rows of sum 1"):
                score.of(x, labels)
        else:
            for odd in (np.ones((30, 4)), 1e9 * x, 1e-9 * x, x @ np.ones((4, 90)), x[:, :1]):
                assert np.isfinite(score.of(odd, labels)), name


def test_the_agreement_is_scipys_weighted_tau() -> None:
    scores, accuracies = [3.0, 1.0, 2.0, 5.0], [0.7, 0.2, 0.3, 0.6]
    assert agreement(scores, accuracies) == weightedtau(scores, accuracies).statistic
    assert agreement([1, 2, 3], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert agreement([1.0], [0.1]) is None and agreement([1.0, 1.0], [0.1, 0.2]) is None
