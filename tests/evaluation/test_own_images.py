"""Folds, temperature, calibration error and interval, against other code; copies of a picture."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from metalearn.data.own_images import OwnImages, alike
from metalearn.evaluation.own_images.adapter import shot_by_shot
from metalearn.evaluation.own_images.calibration import (
    calibration,
    calibration_error,
    fitted_temperature,
    folds,
    probabilities,
    wilson,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (17, 25), (1, 100)])
def test_the_interval_is_scipys(right: int, count: int) -> None:
    want = binomtest(right, count).proportion_ci(method="wilson")
    got = wilson(right / count, count)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-12)


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    p = RNG.dirichlet(np.ones(4), 200)
    labels = RNG.integers(0, 4, 200)
    given = torch.from_numpy(p), torch.from_numpy(labels)
    want = metrics.multiclass_calibration_error(*given, num_classes=4, n_bins=10, norm="l1")
    got = calibration_error(p.max(1), p.argmax(1) == labels)
    assert got == pytest.approx(float(want), abs=1e-6)


def test_the_calibration_error_by_hand() -> None:
    # Two answers of 0.9, one right: |0.5 - 0.9|; two of 0.55, both right: |1 - 0.55|.
    confidence, right = np.array([0.9, 0.9, 0.55, 0.55]), np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx((0.4 + 0.45) / 2)


def test_the_temperature_that_made_the_labels_is_found() -> None:
    logits = RNG.normal(size=(20_000, 3)) * 2
    p = probabilities(logits, 2.5)
    labels = (RNG.random(len(p))[:, None] > p.cumsum(1)).sum(1)
    assert fitted_temperature(logits, labels) == pytest.approx(2.5, rel=0.03)
    assert fitted_temperature(40 * logits, labels) == pytest.approx(100, rel=0.03)
    assert calibration(logits, labels).error < 0.02 < calibration(logits, labels).error_before


def test_a_few_shots_that_are_all_right_do_not_make_certain() -> None:
    logits = np.eye(3)[[0, 1, 2, 0, 1, 2]] * 50
    found = calibration(logits, np.array([0, 1, 2, 0, 1, 2]))
    # (n + 1 / N) / (n + 1) of n = 6 shots and N = 3 classes.
    want = (6 + 1 / 3) / 7
    assert probabilities(logits, found.temperature).max() == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize(
    ("labels", "groups", "held"),
    [
        ([0, 0, 1, 1], None, 4),
        ([0] * 9 + [1, 1], None, 11),
        ([0, 1, 1, 1], None, 3),  # the only one of its class stays in
        ([0, 0, 0, 1, 1, 1], [0, 0, 2, 3, 4, 5], 6),
        ([0, 0, 1, 1, 1], [0, 0, 2, 3, 4], 3),  # copies of one picture
        ([0, 0, 1, 1], [0, 1, 1, 3], 4),  # one picture in two classes
        ([0, 1], None, 0),
        ([0] * 40 + [1] * 3, None, 43),
    ],
)
def test_folds_keep_every_class_and_copies_together(
    labels: list[int], groups: list[int] | None, held: int
) -> None:
    y = np.array(labels)
    of = np.arange(len(y)) if groups is None else np.array(groups)
    for seed in range(5):
        parts = folds(y, None if groups is None else of, seed)
        every = np.concatenate(parts) if parts else np.array([], int)
        assert len(every) == len(np.unique(every)) == held and len(parts) <= 10
        for part in parts:
            assert set(np.delete(y, part)) == set(labels)
            assert not {*of[part]} & {*np.delete(of, part)}


def test_support_goes_shot_by_shot() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert labels[shot_by_shot(labels)].tolist() == [0, 1, 2, 0, 2, 0]


def test_pictures_stored_anew_are_alike_and_others_are_not() -> None:
    pixels = RNG.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    pixels[3] = np.clip(pixels[1].astype(int) + RNG.integers(-2, 3, pixels[1].shape), 0, 255)
    images = OwnImages(list("abcde"), pixels, ["p", "q", "r", "s", "p"], [], None)
    groups = alike(images)
    assert groups[3] == groups[1] and groups[4] == groups[0] and len(set(groups)) == 3
