"""Heads on features against plain loops: numpy, torch.optim, scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from metalearn.episodes import FewShotEpisodes, Manifest
from metalearn.evaluation import heads
from metalearn.evaluation.features import FeatureEpisodes, standardised, unit_length, used
from metalearn.inner.adaptive import adamw
from metalearn.inner.rules import sgd
from metalearn.types import Batch
from tests.images import tiny_dataset

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
    return Manifest(FeatureEpisodes(source, features, row, change), "test", EPISODES)


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
    report = heads.measure(heads.nearest_centroid(), manifest(made))
    np.testing.assert_allclose(report.accuracies, wanted, atol=1e-12)
    assert report.manifest_hash == manifest(made).hash
    assert 0.4 < np.mean(wanted) < 0.95  # a case that could go wrong


def test_logistic_regression_is_scikit_learns_on_unit_features(made) -> None:
    wanted = []
    for x, y, q, truth in tasks(made):
        x, q = (t.numpy() / np.linalg.norm(t.numpy(), axis=1, keepdims=True) for t in (x, q))
        wanted.append(LogisticRegression(C=1.0, max_iter=1000).fit(x, y).score(q, truth))
    found = heads.logistic_regression_accuracies(manifest(made, unit_length))
    np.testing.assert_allclose(found, wanted, atol=1e-12)


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
    head = heads.linear(SIZE, WAYS, rule, 9)
    head = head._replace(
        meta={**head.meta, "init": {n: t.double() for n, t in head.meta["init"].items()}}
    )
    report = heads.measure(head, manifest(made, change), at=(0, 4, 9))
    for column, steps in enumerate((0, 4, 9)):
        for row, (x, y, q, truth) in enumerate(tasks(made, change)):
            layer = optimised(x, y, steps, optimizer, **options)
            with torch.no_grad():
                logits = layer(q)
            loss = float(torch.nn.functional.cross_entropy(logits, truth))
            right = float((logits.argmax(1) == truth).double().mean())
            # Our AdamW has its epsilon of 1e-8 under the root.
            assert report.by_step["loss"][row, column] == pytest.approx(loss, abs=1e-6)
            assert report.by_step["accuracy"][row, column] == pytest.approx(right, abs=1e-12)


def test_the_best_on_validation_is_chosen_and_an_edge_of_the_grid_is_told() -> None:
    inside = {
        0.1: {1: 0.3, 5: 0.5, 9: 0.4},
        1.0: {1: 0.5, 5: 0.6, 9: 0.5},
        3.0: {1: 0.2, 5: 0.6, 9: 0.1},
    }
    assert heads.choose(inside) == (1.0, 5, 0.6, "")
    assert heads.choose({0.1: {1: 0.3, 5: 0.5}, 1.0: {1: 0.5, 5: 0.2}}) == (
        1.0,
        1,
        0.5,
        "rate=1 and steps=1",
    )
    assert heads.choose({0.1: {1: 0.3, 5: 0.3}}) == (0.1, 1, 0.3, "steps=1")
    assert heads.choose({0.5: {3: 0.9}}) == (0.5, 3, 0.9, "")


def test_logistic_regression_of_one_task_predicts_classes(made) -> None:
    x, y, q, _ = tasks(made)[0]
    found = heads.logistic_regression(Batch(x, y), q)
    assert found.shape == (len(q),) and set(found.tolist()) <= {0, 1, 2}
