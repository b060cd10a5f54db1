"""The sinusoid family, and where data is looked for."""

from pathlib import Path

import numpy as np
import pytest

from metalearn.data import DataError, Sinusoid, cache_folder, data_folder


def test_every_point_lies_on_one_sine() -> None:
    """A sin(x - phase) is linear in sin x and cos x: the fit is exact and gives A and phase."""
    for seed in range(50):
        x, y = Sinusoid().draw(np.random.default_rng(seed), 40)
        assert x.shape == y.shape == (40, 1) and x.dtype == y.dtype == np.float32
        assert np.abs(x).max() <= 5
        basis = np.concatenate([np.sin(x), np.cos(x)], 1).astype(np.float64)
        (a, b), *_ = np.linalg.lstsq(basis, y[:, 0], rcond=None)
        assert np.abs(basis @ [a, b] - y[:, 0]).max() < 1e-5
        assert 0.1 <= np.hypot(a, b) <= 5.0
        assert 0.0 <= np.arctan2(-b, a) <= np.pi


def test_a_task_depends_on_its_generator_alone() -> None:
    first = Sinusoid().draw(np.random.default_rng(3), 10)
    again = Sinusoid().draw(np.random.default_rng(3), 10)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, Sinusoid().draw(np.random.default_rng(4), 10))


def test_ranges_must_rise() -> None:
    with pytest.raises(DataError, match=r"amplitude must rise"):
        Sinusoid(amplitude=(2.0, 1.0))


def test_equal_ranges_are_equal_families() -> None:
    assert repr(Sinusoid(x=[-5, 5])) == repr(Sinusoid())  # as a configuration gives them


def test_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METALEARN_DATA", raising=False)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert data_folder() == tmp_path / "shared" / "data"
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "project"))
    assert data_folder() == tmp_path / "project"
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"METALEARN_DATA names .*nowhere"):
        data_folder()


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c"
    monkeypatch.delenv("METALEARN_CACHE")
    assert cache_folder().name == "metalearn"
