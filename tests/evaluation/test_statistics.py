import math

import numpy as np
import pytest
from scipy import stats

from metalearn.evaluation.statistics import Interval, mean_interval, paired_interval


def test_the_interval_is_students():
    # By hand: mean 2, s = 1, t(2, 0.975) = 4.30265.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30265 / math.sqrt(3), 3), 1e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_it_agrees_with_scipy(confidence):
    values = np.random.default_rng(0).random(600)
    low, high = stats.t.interval(confidence, 599, values.mean(), stats.sem(values))
    mean, half, count = mean_interval(values, confidence)
    assert (mean - half, mean + half, count) == pytest.approx((low, high, 600), rel=1e-12)


def test_it_covers_the_true_mean_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(3.0, 2.0, (4000, 5))
    covered = [abs(i.mean - 3.0) <= i.half_width for i in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_small_and_odd_samples():
    one = mean_interval([0.5])
    assert (one.mean, one.count) == (0.5, 1) and math.isnan(one.half_width)
    assert mean_interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.0, 3)
    assert all(math.isnan(value) for value in mean_interval([0.5, math.nan])[:2])
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=95)


def test_pairs_give_the_interval_of_the_difference():
    hardness = np.random.default_rng(2).normal(size=100)
    a, b = hardness + 0.5, hardness
    assert paired_interval(a, b) == pytest.approx((0.5, 0.0, 100), abs=1e-12)
    with pytest.raises(ValueError, match="100 and 99"):
        paired_interval(a, b[:-1])
