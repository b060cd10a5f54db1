"""Intervals over seeds and episodes against closed forms and whole experiments."""

import numpy as np
import pytest
from scipy import stats

from metalearn.sweeps.uncertainty import (
    difference,
    holm,
    interquartile_mean,
    mean_over_seeds,
    probability_of_improvement,
)


def test_one_seed_has_the_interval_of_its_episodes() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.1, (1, 1000))
    found = mean_over_seeds(values)
    assert found.mean == values.mean()
    normal = 1.96 * values.std() / np.sqrt(1000)
    assert found.half_width == pytest.approx(normal, rel=0.05)
    assert found.low < found.mean < found.high


def test_the_spread_of_seeds_and_of_episodes_both_count() -> None:
    """Of a sum of both effects the variance of the mean is (about) the sum of the two."""
    rng = np.random.default_rng(1)
    seed, episode = rng.normal(0, 0.05, (8, 1)), rng.normal(0, 0.2, (1, 400))
    found = mean_over_seeds(0.5 + seed + episode)
    want = 1.96 * np.sqrt(seed.var() / 8 + episode.var() / 400)
    assert found.half_width == pytest.approx(want, rel=0.06)
    assert mean_over_seeds(np.full((3, 5), 0.25)) == (0.25, 0.25, 0.25)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(2), 0
    for _ in range(200):
        values = rng.normal(0, 1, (12, 1)) + rng.normal(0, 3, (1, 60)) + rng.normal(0, 1, (12, 60))
        found = mean_over_seeds(values)
        inside += found.low < 0 < found.high
    assert 0.89 < inside / 200 <= 0.99  # 2.5 standard deviations around 0.94


def test_a_difference_is_of_the_same_episodes() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 0.3, (1, 500))
    a, b = 0.52 + hard + rng.normal(0, 0.01, (3, 500)), 0.50 + hard + rng.normal(0, 0.01, (3, 500))
    gap, p = difference(a, b)
    assert gap.mean == pytest.approx(0.02, abs=0.003)
    assert gap.low > 0 and p < 0.01  # either mean alone is known to 0.026 only
    assert mean_over_seeds(a).half_width > 10 * gap.half_width
    same, p = difference(a, a)
    assert same.mean == 0 and p > 0.5
    with pytest.raises(ValueError, match="500 and 10 episodes are no pairs"):
        difference(a, b[:, :10])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_middle_half_and_the_chance_to_be_better() -> None:
    assert interquartile_mean(np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]])) == 3.5
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.5])
    u = stats.mannwhitneyu(a, b).statistic / 6
    assert probability_of_improvement([a], [b]) == pytest.approx(u)
    assert probability_of_improvement([a, b], [b, b]) == pytest.approx((u + 0.5) / 2)
