"""More classifiers against their equations in numpy, scikit-learn, scipy or torch's own layers."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as TheirRegression
from sklearn.svm import LinearSVC
from torch import Tensor

from metalearn.classifiers import (
    FEAT,
    FRN,
    SVM,
    DeepBDC,
    DistributionCalibration,
    Matching,
    Relation,
    SimpleCNAPS,
    SimpleShot,
)  # fmt: skip
from metalearn.errors import UsageError
from metalearn.types import Batch
from tests.classifiers.test_references import (
    MEANS,
    QUERY,
    SIZE,
    SUPPORT,
    WAYS,
    WEIGHT,
    X,
    close,
    logits,
    query,
    squared,
    unit,
    x,
    y,
)  # fmt: skip
from tests.tasks import generator

BASE = torch.rand(300, SIZE, generator=generator(5), dtype=torch.float64) * 2
CLASSES = torch.arange(300) % 5


def drawn(hyper: dict) -> dict:
    """What is learned, away from where it starts."""
    g = generator(3)
    return {n: t + 0.3 * torch.randn(t.shape, generator=g, dtype=t.dtype) for n, t in hyper.items()}


def answers(classifier, hyper: dict) -> np.ndarray:
    return classifier.logits(hyper, classifier.fit(hyper, SUPPORT), QUERY)[:, :WAYS].numpy()


@pytest.mark.parametrize("transform", ["plain", "l2", "centred_l2"])
def test_simple_shot_is_the_nearest_mean_of_what_was_transformed(transform: str) -> None:
    centre = BASE.numpy().mean(0) if transform == "centred_l2" else 0
    change = (lambda a: a) if transform == "plain" else (lambda a: unit(a - centre))
    means = np.stack([change(x)[y == n].mean(0) for n in range(WAYS)])
    close(logits(SimpleShot(transform).with_base(BASE, CLASSES)), -squared(change(query), means))
    if transform == "centred_l2":
        close(logits(SimpleShot()), logits(SimpleShot("l2")))


def test_matching_is_a_vote_by_cosine() -> None:
    cosine = unit(query) @ unit(x).T / 0.3
    votes = np.stack([logsumexp(cosine[:, y == n], 1) for n in range(WAYS)], 1)
    found = logits(Matching(0.3))
    close(found, votes)
    p = np.exp(cosine - logsumexp(cosine, 1, keepdims=True))
    close(np.exp(found - logsumexp(found, 1, keepdims=True)), p @ np.eye(WAYS)[y])


def test_full_context_embeddings_are_torchs_lstms() -> None:
    classifier = Matching(full_context=True, steps=3)
    hyper = classifier.hyper(SIZE)
    both = torch.nn.LSTM(SIZE, SIZE, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for name, end in (("along", ""), ("backwards", "_reverse")):
            getattr(both, f"weight_ih_l0{end}").copy_(hyper[f"{name}_input"])
            getattr(both, f"weight_hh_l0{end}").copy_(hyper[f"{name}_hidden"])
            getattr(both, f"bias_ih_l0{end}").copy_(hyper[f"{name}_bias"])
            getattr(both, f"bias_hh_l0{end}").zero_()
        # Its input and what it is fed back, side by side: the cell's own state has D numbers.
        cell = torch.nn.LSTMCell(3 * SIZE, SIZE, bias=True, dtype=torch.float64)
        cell.weight_ih.copy_(torch.cat([hyper["query_input"], hyper["query_hidden"]], 1))
        cell.weight_hh.zero_()
        cell.bias_ih.copy_(hyper["query_bias"])
        cell.bias_hh.zero_()
        g = X + sum(both(X)[0].chunk(2, 1))
        h = c = r = torch.zeros_like(QUERY)
        for _ in range(3):
            new, c = cell(torch.cat([QUERY, h, r], 1), (torch.zeros_like(c), c))
            h = new + QUERY
            r = (h @ g.T).softmax(1) @ g
    cosine = F.cosine_similarity(h.unsqueeze(1), g.unsqueeze(0), dim=2).numpy()
    votes = np.stack([logsumexp(cosine[:, y == n], 1) for n in range(WAYS)], 1)
    close(answers(classifier, hyper), votes)


@pytest.mark.parametrize(("channels", "side"), [(None, 1), (6, 1)])
def test_relation_is_torchs_layers(channels: int | None, side: int) -> None:
    classifier = Relation(channels, width=5)
    hyper = drawn(classifier.hyper(SIZE))
    for n, mean in enumerate(torch.from_numpy(MEANS)):
        h = torch.cat([mean.expand_as(QUERY), QUERY], 1).view(len(QUERY), -1, side, side)
        for name in ("conv0", "conv1"):
            h = F.conv2d(h, hyper[f"{name}_weight"], padding=1)
            h = F.group_norm(h, 1, hyper[f"{name}_norm"], hyper[f"{name}_bias"]).relu()
        h = F.adaptive_avg_pool2d(h, 1).flatten(1)
        h = F.linear(h, hyper["linear0_weight"], hyper["linear0_bias"]).relu()
        r = F.linear(h, hyper["linear1_weight"], hyper["linear1_bias"]).sigmoid()
        close(answers(classifier, hyper)[:, n], r[:, 0].numpy())


def test_relation_compares_maps_place_by_place() -> None:
    g = generator()
    maps = torch.randn(4, 3, 4, generator=g, dtype=torch.float64)
    classifier = Relation(3, width=5)
    hyper = drawn(classifier.hyper(12))
    given = Batch(maps[:2].flatten(1), torch.arange(2))
    found = classifier.logits(hyper, classifier.fit(hyper, given), maps[2:].flatten(1))
    h = torch.cat([maps[:1].expand(2, -1, -1), maps[2:]], 1).view(2, 6, 2, 2)
    for name in ("conv0", "conv1"):
        h = F.conv2d(h, hyper[f"{name}_weight"], padding=1)
        h = F.group_norm(h, 1, hyper[f"{name}_norm"], hyper[f"{name}_bias"]).relu()
    h = F.linear(h.mean((2, 3)), hyper["linear0_weight"], hyper["linear0_bias"]).relu()
    r = F.linear(h, hyper["linear1_weight"], hyper["linear1_bias"]).sigmoid()
    torch.testing.assert_close(found[:, :1], r, rtol=1e-10, atol=0)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("ways", [None, WAYS])
def test_the_svm_is_scikit_learns(
    weight: list[float] | None, strength: float, ways: int | None
) -> None:
    theirs = LinearSVC(
        multi_class="crammer_singer", C=strength, fit_intercept=False, tol=1e-12, max_iter=10**6
    )
    kept = slice(None) if weight is None else np.array(weight) > 0
    sample = None if weight is None else np.array(weight)[kept]
    theirs.fit(x[kept], y[kept], sample_weight=sample)
    given = SUPPORT._replace(weight=None if weight is None else torch.tensor(weight).double())
    state = SVM(strength, ways=ways).fit({}, given)
    close(state["weight"][:, :WAYS].T.numpy(), theirs.coef_, 1e-6)
    assert state["weight"].shape == (SIZE, len(y)) and (state["weight"][:, WAYS:] == 0).all()
    close(logits(SVM(strength, 3.0, ways=ways), given), 3 * theirs.decision_function(query), 1e-5)


def crammer_singer(w: Tensor, x: Tensor, y: Tensor, strength: float) -> Tensor:
    """The objective of the SVM."""
    f, hot = x @ w, F.one_hot(y, w.shape[1]).double()
    worst = (f - (f * hot).sum(1, keepdim=True) + 1 - hot).amax(1)
    return w.square().sum() / 2 + strength * worst.sum()


@pytest.mark.parametrize(
    ("ways", "shots", "size", "strength", "scale"),
    [(5, 1, 64, 0.1, 1.0), (20, 1, 64, 0.1, 1.0), (5, 5, 64, 0.1, 10.0), (5, 15, 64, 0.1, 0.5),
     (2, 3, 4, 1.0, 1.0), (1, 3, 4, 1.0, 1.0), (3, 10, 2, 1.0, 1.0)],
)  # fmt: skip
def test_nothing_near_the_svm_is_better(
    ways: int, shots: int, size: int, strength: float, scale: float
) -> None:
    g = generator(ways)
    y = torch.arange(ways).repeat(shots)
    x = scale * torch.randn(len(y), size, generator=g, dtype=torch.float64)
    found = SVM(strength, ways=ways).fit({}, Batch(x, y))["weight"][:, :ways]

    least = crammer_singer(found, x, y, strength)
    for _ in range(50):
        near = found + 1e-4 / scale * torch.randn(found.shape, generator=g, dtype=torch.float64)
        assert least < crammer_singer(near, x, y, strength) or ways == 1
    assert ways > 1 or found.norm() < 1e-9


@torch.no_grad()
def test_hard_tasks_at_once_reach_the_optimum() -> None:
    """Fewer features than examples, long ones, and a large C: no solution of scikit-learn's is
    better by the objective, nor one by the steps that a single task would need."""
    g, y = generator(3), torch.arange(5).repeat(5)
    x = torch.stack([s * torch.randn(25, 3, generator=g, dtype=torch.float64) for s in (1, 30)])
    found = SVM(10.0, ways=5).fit({}, Batch(x, y.expand(2, 25)))["weight"][..., :5]
    for task in range(2):
        theirs = LinearSVC(
            multi_class="crammer_singer", C=10.0, fit_intercept=False, tol=1e-9, max_iter=10**5
        )
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            theirs.fit(x[task].numpy(), y.numpy())
        many = SVM(10.0, ways=5, steps=60).fit({}, Batch(x[task], y))["weight"][:, :5]
        for w in (torch.from_numpy(theirs.coef_).T, many):
            least = crammer_singer(w, x[task], y, 10.0)
            assert crammer_singer(found[task], x[task], y, 10.0) <= least * (1 + 1e-7)


def test_feat_is_torchs_attention_and_layer_norm() -> None:
    classifier = FEAT(temperature=3.0)
    hyper = drawn(classifier.hyper(SIZE))
    means = torch.from_numpy(MEANS)
    q, k, v = (F.linear(means, hyper[n]).view(1, 1, WAYS, SIZE) for n in ("query", "key", "value"))
    seen = F.linear(F.scaled_dot_product_attention(q, k, v)[0, 0], hyper["out"])
    adapted = F.layer_norm(means + seen, (SIZE,), hyper["norm_scale"], hyper["norm_shift"])
    close(answers(classifier, hyper), -squared(query, adapted.numpy()) / 3)


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
def test_deep_bdc_is_double_centred_distances(euclidean: bool, channels: int | None) -> None:
    classifier, size = DeepBDC(channels, euclidean), channels or SIZE
    scale = classifier.hyper(SIZE)["log_scale"].exp().item()
    assert scale == pytest.approx(1 / (2 * SIZE // size))
    centring = np.eye(size) - 1 / size

    def matrices(a: np.ndarray) -> np.ndarray:
        each = [m.reshape(size, -1) for m in a]
        return np.stack(
            [(centring @ np.sqrt(scale * squared(m, m) + 1e-5) @ centring).ravel() for m in each]
        )

    classes = np.stack([matrices(x)[y == n].mean(0) for n in range(WAYS)])
    want = -squared(matrices(query), classes) if euclidean else matrices(query) @ classes.T
    close(logits(classifier), want)


@pytest.mark.parametrize("channels", [None, 2, 3])
def test_frn_is_the_ridge_regression_of_the_places(channels: int | None) -> None:
    classifier, size = FRN(channels), channels or SIZE
    hyper = drawn(classifier.hyper(SIZE))
    alpha, beta, gamma = (hyper[n].item() for n in ("alpha", "beta", "gamma"))

    def places(a: np.ndarray) -> np.ndarray:
        return np.swapaxes(a.reshape(len(a), size, -1), 1, 2) / np.sqrt(size)

    want = np.empty((len(query), WAYS))
    for n in range(WAYS):
        pool = places(x)[y == n].reshape(-1, size)
        penalty = np.exp(alpha) * len(pool) / size
        solved = pool.T @ np.linalg.inv(pool @ pool.T + penalty * np.eye(len(pool))) @ pool
        rest = places(query) - np.exp(beta) * places(query) @ solved
        want[:, n] = -gamma * (rest**2).sum(2).mean(1)
    close(answers(classifier, hyper), want)


def test_simple_cnaps_is_the_mahalanobis_distance() -> None:
    one_shot = np.r_[1:7]  # class 0 with one example
    given = Batch(X[one_shot], SUPPORT.y[one_shot])
    for batch in (SUPPORT, given):
        xs, ys = batch.x.numpy(), batch.y.numpy()
        want = np.empty((len(query), WAYS))
        for n in range(WAYS):
            own = xs[ys == n]
            k = len(own) / (len(own) + 1)
            of_class = np.cov(own.T) if len(own) > 1 else 0
            q = k * of_class + (1 - k) * np.cov(xs.T) + 0.5 * np.eye(SIZE)
            apart = query - own.mean(0)
            want[:, n] = -(apart @ np.linalg.inv(q) * apart).sum(1) / 2
        close(logits(SimpleCNAPS(0.5), batch), want)


def test_calibrated_regression_is_scikit_learns_on_the_same_draws() -> None:
    classifier = DistributionCalibration(samples=6, strength=2.0).with_base(BASE, CLASSES)
    power = np.sign(x) * (np.sqrt(abs(x) + 1e-6) - 1e-3)
    base, labels = BASE.numpy(), CLASSES.numpy()
    means = np.stack([base[labels == n].mean(0) for n in range(5)])
    near = np.argsort(squared(power, means), 1)[:, :2]
    centres = (power + means[near].sum(1)) / 3
    around = centres[:, None] + classifier.draws.numpy()[near].sum(1) / np.sqrt(2)
    theirs = TheirRegression(C=2.0, max_iter=10**5, tol=1e-13, solver="newton-cg")
    theirs.fit(np.concatenate([power, around.reshape(-1, SIZE)]), np.r_[y, y.repeat(6)])
    scores = theirs.decision_function(np.sign(query) * (np.sqrt(abs(query) + 1e-6) - 1e-3))
    close(logits(classifier), scores - theirs.intercept_.mean(), 1e-6)


def test_what_is_drawn_has_the_covariance_of_the_paper() -> None:
    classifier = DistributionCalibration(samples=40_000, alpha=0.3).with_base(BASE, CLASSES)
    drawn = classifier.draws[1].numpy() / np.sqrt(2) + classifier.draws[3].numpy() / np.sqrt(2)
    base = [BASE[n == CLASSES].numpy() for n in (1, 3)]
    want = (np.cov(base[0].T) + np.cov(base[1].T)) / 2 + 0.3
    assert abs(np.cov(drawn.T) - want).max() < 0.03
    assert abs(drawn.mean(0)).max() < 0.02


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="nearest=9 of 5 base classes; use fewer"):
        DistributionCalibration(nearest=9).with_base(BASE, CLASSES)
    with pytest.raises(UsageError, match="channels=4 does not divide the 6 features"):
        logits(FRN(channels=4))
    with pytest.raises(UsageError, match="3 places are no square map; correct channels"):
        logits(Relation(channels=2))
    with pytest.raises(UsageError, match="use plain or l2 or centred_l2"):
        SimpleShot("l3")
    for make in (lambda: SVM(0.0), lambda: SimpleCNAPS(0.0), lambda: FEAT(0.0),
                 lambda: Matching(0.0), lambda: DistributionCalibration(power=0.0)):  # fmt: skip
        with pytest.raises(UsageError, match="=0.0 must be above 0"):
            make()
    for make in (lambda: SVM(steps=0), lambda: Matching(steps=0)):
        with pytest.raises(UsageError, match="steps=0 must be 1 or more"):
            make()
    with pytest.raises(UsageError, match="samples=0 and nearest=2 must be 1 or more"):
        DistributionCalibration(samples=0)
