"""The harmonic family against its definition."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import kstest

from metalearn.data import DataError, Harmonic
from metalearn.episodes import make_episodes


def residual(frequency: float, x: np.ndarray, y: np.ndarray) -> float:
    """What the best sum of waves of `frequency` and twice that leaves of y."""
    waves = [f(k * frequency * x) for k in (1, 2) for f in (np.sin, np.cos)]
    basis = np.concatenate(waves, 1)
    return float(np.abs(basis @ np.linalg.lstsq(basis, y, rcond=None)[0] - y).max())


def test_every_point_lies_on_two_waves_of_one_frequency() -> None:
    for seed in range(10):
        x, y = Harmonic().draw(np.random.default_rng(seed), 60)
        assert x.shape == y.shape == (60, 1) and x.dtype == y.dtype == np.float32
        x, y = x.astype(float), y.astype(float)
        grid = np.linspace(5, 7, 401)
        start = grid[np.argmin([residual(w, x, y) for w in grid])]
        bounds = (start - 0.01, start + 0.01)
        best = minimize_scalar(residual, bounds=bounds, args=(x, y), options={"xatol": 1e-9})
        assert best.fun < 1e-4 and 5 <= best.x <= 7
        assert residual(best.x + 0.05, x, y) > 100 * best.fun


def test_inputs_and_amplitudes_have_the_papers_distributions() -> None:
    rng = np.random.default_rng(1)
    drawn = [Harmonic().draw(rng, 50) for _ in range(3000)]
    x, y = (np.stack(part)[..., 0].astype(float) for part in zip(*drawn, strict=True))
    centers = x.mean(1)
    assert kstest(centers, "uniform", (-4, 8)).statistic < 0.04
    assert abs((x - centers[:, None]).std(ddof=0) / np.sqrt(49 / 50) - 1) < 0.02
    # E y^2 = (E a1^2 + E a2^2) / 2 = 1, in which a mean of 3000 tasks is right to 0.02.
    assert abs((y * y).mean() - 1) < 0.08 and abs(y.mean()) < 0.05


def test_noise_and_bad_ranges() -> None:
    clean, noisy = (Harmonic(noise=n).draw(np.random.default_rng(2), 4000) for n in (0, 0.5))
    assert np.array_equal(clean[0], noisy[0])
    assert abs((noisy[1] - clean[1]).std() - 0.5) < 0.02
    with pytest.raises(DataError, match="harmonic: noise=-1 must be 0 or more"):
        Harmonic(noise=-1)
    with pytest.raises(DataError, match="harmonic: center must rise"):
        Harmonic(center=(4, -4))


def test_episodes_of_it() -> None:
    source = make_episodes(Harmonic(), ways=5, shots=4, queries=3, seed=1)
    together, alone = source.batch("val", [7, 2]), source.batch("val", [2])
    assert together.support.x.shape == (2, 4, 1) and together.query.y.shape == (2, 3, 1)
    assert np.array_equal(together.query.y[1], alone.query.y[0])
