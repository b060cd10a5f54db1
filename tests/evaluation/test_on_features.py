"""Classifiers on features, over whole episodes, against plain loops: numpy, torch.optim,
scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Theirs
from torch import Tensor

from metalearn.algorithms import ANIL, MAML, R2D2, ProtoNet, SoftKMeans
from metalearn.algorithms.losses import cross_entropy_of_tasks
from metalearn.backbones import Conv4
from metalearn.classifiers import (
    BDCSPN,
    SVM,
    Centroid,
    Classifier,
    Cosine,
    LaplacianShot,
    LinearProbe,
    LogisticRegression,
)
from metalearn.classifiers import SoftKMeans as Refined
from metalearn.engine import Engine
from metalearn.episodes import FewShotEpisodes, ImageTransform, Manifest, TransformedEpisodes
from metalearn.evaluation import evaluate
from metalearn.evaluation.features import FeatureEpisodes, standardised, unit_length, used
from metalearn.evaluation.on_features import (
    Head,
    choose,
    classifying,
    evaluate_once,
    head_on_host,
    measure,
)  # fmt: skip
from metalearn.inner.adaptive import adamw
from metalearn.inner.rules import sgd
from metalearn.types import Batch, Episodes
from tests.images import tiny_dataset
from tests.tasks import network

EPISODES, WAYS, SIZE = 6, 3, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """(source, float64 features, rows): features with a part that tells the class."""
    dataset = tiny_dataset(tmp_path_factory.mktemp("tiny"))
    source = FewShotEpisodes(dataset, WAYS, 2, 3, seed=2)
    found = used([source], "test", EPISODES)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, SIZE))[found.classes]
    features = centres + 1.3 * rng.normal(size=(len(found.classes), SIZE))
    return source, torch.from_numpy(features), found.row


def manifest(made, change=None) -> Manifest:
    source, features, row = made
    return Manifest(FeatureEpisodes(source, features, row, "test", change), "test", EPISODES)


def tasks(made, change=None) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(x, y) of support and query of every episode."""
    batches = manifest(made, change).batches(1)
    return [(b.support.x[0], b.support.y[0], b.query.x[0], b.query.y[0]) for b in batches]


def test_nearest_centroid_is_the_cosine_with_means_of_unit_vectors(made) -> None:
    wanted = []
    for x, y, q, truth in tasks(made):
        x, q = (t.numpy() / np.linalg.norm(t.numpy(), axis=1, keepdims=True) for t in (x, q))
        means = np.stack([x[y.numpy() == c].mean(0) for c in range(WAYS)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        wanted.append(((q @ means.T).argmax(1) == truth.numpy()).mean())
    report = measure(classifying(Cosine()), manifest(made))
    np.testing.assert_allclose(report.accuracies, wanted, atol=1e-12)
    assert report.manifest_hash == manifest(made).hash
    assert 0.4 < np.mean(wanted) < 0.95  # a case that could go wrong


def test_logistic_regression_is_scikit_learns_on_unit_features(made) -> None:
    wanted = []
    for x, y, q, truth in tasks(made):
        x, q = (t.numpy() / np.linalg.norm(t.numpy(), axis=1, keepdims=True) for t in (x, q))
        wanted.append(Theirs(C=1.0, max_iter=1000).fit(x, y).score(q, truth))
    report = measure(classifying(LogisticRegression()), manifest(made, unit_length))
    np.testing.assert_allclose(report.accuracies, wanted, atol=1e-12)


def optimised(x: Tensor, y: Tensor, steps: int, optimizer, **options) -> torch.nn.Linear:
    """A layer from zero after so many steps of a torch optimizer."""
    layer = torch.nn.Linear(SIZE, WAYS, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    made = optimizer(layer.parameters(), **options)
    for _ in range(steps):
        made.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), y).backward()
        made.step()
    return layer


@pytest.mark.parametrize(
    ("rule", "optimizer", "options", "change"),
    [
        (sgd(0.3), torch.optim.SGD, {"lr": 0.3}, None),
        (
            adamw(0.05, weight_decay=0.1),
            torch.optim.AdamW,
            {"lr": 0.05, "weight_decay": 0.1},
            standardised,
        ),
    ],
    ids=["fine_tune_head", "linear_probe"],
)
def test_a_linear_head_is_a_plain_loop_of_torch_optim(
    made, rule, optimizer, options, change
) -> None:
    for steps in (0, 4, 9):
        head = classifying(LinearProbe(rule, steps, WAYS))
        report = measure(head, manifest(made, change))
        for row, (x, y, q, truth) in enumerate(tasks(made, change)):
            layer = optimised(x, y, steps, optimizer, **options)
            with torch.no_grad():
                logits = layer(q)
            loss = float(torch.nn.functional.cross_entropy(logits, truth))
            right = float((logits.argmax(1) == truth).double().mean())
            # Our AdamW has its epsilon of 1e-8 under the root.
            assert report.losses[row] == pytest.approx(loss, abs=1e-6)
            assert report.accuracies[row] == pytest.approx(right, abs=1e-12)


def test_a_transductive_classifier_sees_the_queries_of_its_own_task(made) -> None:
    wanted = []
    for x, y, q, truth in tasks(made):
        means = torch.stack([x[y == c].mean(0) for c in range(WAYS)])
        share = (-(torch.cdist(q, means) ** 2)).softmax(1)
        counts = torch.bincount(y)[:, None] + share.sum(0)[:, None]
        refined = (means * torch.bincount(y)[:, None] + share.T @ q) / counts
        logits = -(torch.cdist(q, refined) ** 2)
        wanted.append(float(torch.nn.functional.cross_entropy(logits, truth)))
    report = measure(classifying(Refined()), manifest(made))
    np.testing.assert_allclose(report.losses, wanted, rtol=1e-9)


def test_the_head_of_a_network_is_measured_as_the_network_is(made) -> None:
    """Features of a body that stays as it is, and the head from where it was learned."""
    source, features, row = made
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(SIZE, 6), torch.nn.Tanh()).double()
    layer = torch.nn.Linear(6, WAYS).double()
    algo = ANIL(torch.nn.Sequential(*body, layer), 3, sgd(0.3))
    found, whole = algo.on_features(), algo.init()
    assert found is not None and found.path == "2"
    with torch.no_grad():
        deeper = FeatureEpisodes(source, body(features), row, "test")
    head = head_on_host(found.algo, whole)
    assert set(head.meta["init"]) == {"2.weight", "2.bias"}
    got = measure(head, Manifest(deeper, "test", EPISODES), at=(0, 3))
    want = measure(Head(algo, whole), manifest(made), at=(0, 3))
    np.testing.assert_allclose(got.by_step["loss"], want.by_step["loss"], rtol=1e-10)
    assert (want.by_step["loss"][:, 1] < want.by_step["loss"][:, 0]).any()


def conv4(norm: str, outputs: int | None) -> torch.nn.Module:
    options = {"channels": 1, "filters": 4, "size": 16, "norm": norm}
    return network(lambda: Conv4(outputs, **options), dtype=torch.float32)


@pytest.mark.parametrize(
    ("make", "once"),
    [
        (lambda: ProtoNet(conv4("frozen", None), "cosine", 0.005, True), True),
        (lambda: R2D2(conv4("group", None)), True),
        (lambda: SoftKMeans(conv4("frozen", None), temperature=1e-3), True),
        (lambda: ANIL(conv4("frozen", WAYS), 2, sgd(0.3)), True),
        (lambda: ANIL(conv4("transductive", WAYS), 2, sgd(0.3)), False),
        (lambda: ProtoNet(conv4("support", None)), False),
        (lambda: MAML(conv4("frozen", WAYS), 2, sgd(0.3)), False),
    ],
    ids=["protonet", "r2d2", "soft_kmeans", "anil", "transductive", "support", "maml"],
)
def test_an_image_passes_through_the_network_once_where_that_changes_nothing(
    make, once: bool, tmp_path, monkeypatch
) -> None:
    dataset = tiny_dataset(tmp_path, side=20)
    source = FewShotEpisodes(dataset, WAYS, 2, 3, seed=2)
    prepared = TransformedEpisodes(source, ImageTransform(size=16))
    algo, seen = make(), []
    algo.net.module.register_forward_hook(lambda module, given, _: seen.append(given[0].shape[0]))
    meta = algo.init()
    want = evaluate(algo, meta, Manifest(prepared, "test", 12))
    seen.clear()
    found = evaluate_once(algo, meta, Manifest(prepared, "test", 12))
    images = len(used([source], "test", 12).classes)
    assert (sum(seen) <= 2 * images) is once
    for name, values in want.by_step.items():
        np.testing.assert_allclose(found.by_step[name], values, rtol=1e-4, atol=1e-6)
    assert found.manifest_hash == want.manifest_hash
    assert want.loss.mean > 0.01 and np.std(want.losses) > 1e-3
    # Where an image is seen but once or twice, nothing would be gained.
    seen.clear()
    evaluate_once(algo, meta, Manifest(prepared, "test", 1))
    assert len(seen) > 1 or not once


def test_the_best_on_validation_is_chosen_and_an_edge_of_the_grid_is_told() -> None:
    inside = {
        0.1: {1: 0.3, 5: 0.5, 9: 0.4},
        1.0: {1: 0.5, 5: 0.6, 9: 0.5},
        3.0: {1: 0.2, 5: 0.6, 9: 0.1},
    }
    assert choose(inside) == (1.0, 5, 0.6, "")
    assert choose({0.1: {1: 0.3, 5: 0.5}, 1.0: {1: 0.5, 5: 0.2}}) == (
        1.0,
        1,
        0.5,
        "rate=1 and steps=1",
    )
    assert choose({0.1: {1: 0.3, 5: 0.3}}) == (0.1, 1, 0.3, "steps=1")
    assert choose({0.5: {3: 0.9}}) == (0.5, 3, 0.9, "")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("classifier", [Centroid(), LaplacianShot(), BDCSPN(), SVM()], ids=repr)
def test_tasks_at_once_are_measured_as_one_after_another(
    made, classifier: Classifier, padded: bool
) -> None:
    source, features, row = made
    episodes = FeatureEpisodes(source, features, row, "test").batch("test", range(EPISODES))
    if padded:
        weights = [torch.ones(b.labels.shape, dtype=torch.float64) for b in episodes[:2]]
        weights[0][1, -1] = weights[1][0, -2:] = weights[1][2, 0] = 0
        parts = (b._replace(weight=w) for b, w in zip(episodes[:2], weights, strict=True))
        episodes = Episodes(*parts)
        episodes.query.y[0, -1] = 4  # of padding, which nobody looks at
    head = classifying(classifier, dtype=torch.float64)
    want = evaluate(*head, episodes, engine=Engine("loop"))
    assert len(set(want.accuracies)) > 1
    for batching in ("vmap", "4", "auto"):
        found = evaluate(*head, episodes, engine=Engine(batching))
        np.testing.assert_allclose(found.losses, want.losses, rtol=1e-9)
        np.testing.assert_array_equal(found.accuracies, want.accuracies)


def test_of_equal_logits_the_first_class_is_the_answer() -> None:
    logits, y = torch.zeros(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 3], [0, 0, 2]])
    found = cross_entropy_of_tasks(logits, Batch(None, y))
    assert found["accuracy"].tolist() == pytest.approx([1 / 3, 2 / 3])
    logits[0, 0] = torch.nan  # is not right
    assert cross_entropy_of_tasks(logits, Batch(None, y))["accuracy"].tolist()[0] == 0
