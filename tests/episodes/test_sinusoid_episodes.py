"""Regression episodes: support and query are points of one sine curve."""

import math

import pytest
import torch

from metalearn.data import Sinusoid
from metalearn.episodes import CurveEpisodes, make_episodes
from metalearn.errors import UsageError

SPLITS = ("train", "val", "test")


def fitted(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Amplitude and phase of the sine through points `[B, 1]`."""
    basis = torch.cat([x.sin(), x.cos()], 1).double()
    a, b = torch.linalg.lstsq(basis, y.double()).solution.flatten().tolist()
    return math.hypot(a, b), math.atan2(-b, a)


def test_support_and_query_are_on_one_curve_in_range() -> None:
    episodes = make_episodes(Sinusoid(), ways=5, shots=10, queries=7, seed=3).batch(
        "train", range(60)
    )
    assert episodes.support.x.shape == episodes.support.y.shape == (60, 10, 1)
    assert episodes.query.x.shape == episodes.query.y.shape == (60, 7, 1)
    assert episodes.query.x.dtype == episodes.query.y.dtype == torch.float32
    curves = set()
    for sx, sy, qx, qy in zip(*episodes.support[:2], *episodes.query[:2], strict=True):
        amplitude, phase = fitted(sx, sy)
        assert 0.1 <= amplitude <= 5.0 and -1e-5 <= phase <= math.pi + 1e-5
        assert torch.allclose(amplitude * torch.sin(qx - phase), qy, atol=1e-4)
        assert not set(sx.flatten().tolist()) & set(qx.flatten().tolist())
        curves.add((round(amplitude, 4), round(phase, 4)))
    assert len(curves) == 60
    xs = torch.cat([episodes.support.x, episodes.query.x], 1)
    assert -5 <= xs.min() < -4.9 and 4.9 < xs.max() <= 5


def test_the_family_is_the_data_sets() -> None:
    family = Sinusoid(amplitude=(2.0, 3.0), phase=(0.5, 1.0), x=(1.0, 2.0))
    episodes = CurveEpisodes(family, 8, 8).batch("test", range(20))
    assert episodes.query.x.min() >= 1 and episodes.query.x.max() <= 2
    for x, y in zip(episodes.query.x, episodes.query.y, strict=True):
        amplitude, phase = fitted(x, y)
        assert 2 - 1e-3 <= amplitude <= 3 + 1e-3 and 0.5 - 1e-3 <= phase <= 1 + 1e-3


def test_neither_order_nor_batch_matters() -> None:
    whole = CurveEpisodes(Sinusoid(), 4, 3, seed=9).batch("val", range(6))
    mixed = CurveEpisodes(Sinusoid(), 4, 3, seed=9)
    for indices in ([5, 0], [3], [4, 1, 2]):
        batch = mixed.batch("val", indices)
        for got, want in zip(batch.parts, whole.parts, strict=True):
            assert torch.equal(got.x, want.x[indices])
            assert torch.equal(got.y, want.y[indices])


def test_other_families_seeds_splits_and_indices_give_other_episodes() -> None:
    seen = [
        CurveEpisodes(family, 2, 2, seed).fingerprint(split, index)
        for family in (Sinusoid(), Sinusoid(amplitude=(0.1, 4.0)))
        for seed in (0, 1, 11)
        for split in SPLITS
        for index in (0, 1, 11)
    ]
    assert len(set(seen)) == len(seen) == 54


@pytest.mark.parametrize("name", ["shots", "queries"])
def test_a_shape_that_is_not_positive(name) -> None:
    with pytest.raises(UsageError) as caught:
        make_episodes(Sinusoid(), **{"ways": 5, "shots": 1, "queries": 1, "seed": 0, name: 0})
    assert str(caught.value) == f"episodes.{name}=0 must be 1 or more"


def test_an_unknown_split() -> None:
    source = CurveEpisodes(Sinusoid(), 1, 1)
    for split in SPLITS:
        source.check(split)
    with pytest.raises(UsageError) as caught:
        source.check("tset")
    assert str(caught.value) == "split='tset' is not known; use train, val, test"
