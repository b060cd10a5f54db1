"""Queries of unequal classes: Dirichlet proportions, sums, what they leave as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalearn.data import Mixture
from metalearn.episodes import (
    FewShotEpisodes,
    ImbalancedSizes,
    Manifest,
    MetaDatasetSizes,
    make_episodes,
    read_manifest,
    write_manifest,
)
from metalearn.episodes.sheet import episode_sheet
from metalearn.episodes.sizes import dirichlet_counts
from metalearn.episodes.tasksets import EpisodeTasks
from metalearn.errors import UsageError
from metalearn.evaluation.features import FeatureEpisodes, used
from tests.images import tiny_dataset


@settings(deadline=None, max_examples=50, database=None)
@given(
    st.integers(0, 2**32), st.floats(0.01, 50), st.lists(st.integers(0, 30), min_size=1, max_size=9)
)
def test_counts_fill_the_total_and_no_class_too_far(seed, concentration, room) -> None:
    rng, room = np.random.default_rng(seed), np.array(room)
    for total in {0, int(room.sum()) // 2, int(room.sum())}:
        counts = dirichlet_counts(rng, concentration, total, room)
        assert counts.sum() == total and (counts >= 0).all() and (counts <= room).all()


def test_proportions_have_the_moments_of_the_distribution() -> None:
    rng, room = np.random.default_rng(0), np.full(5, 10_000)
    for concentration in (0.5, 2.0):
        p = (
            np.stack([dirichlet_counts(rng, concentration, 10_000, room) for _ in range(4000)])
            / 1e4
        )
        whole = 5 * concentration
        variance = concentration * (whole - concentration) / whole**2 / (whole + 1)
        assert abs(p.mean(0) - 0.2).max() < 4 * (variance / 4000) ** 0.5
        np.testing.assert_allclose(p.var(0), variance, rtol=0.12)
        covariance = -(concentration**2) / whole**2 / (whole + 1)
        np.testing.assert_allclose(np.cov(p.T)[0, 1], covariance, rtol=0.25)


def uneven(dataset, **more) -> FewShotEpisodes:
    return FewShotEpisodes(dataset, 3, 2, 2, seed=4, concentration=2.0, **more)


def test_an_episode_is_the_balanced_one_but_for_its_queries(tiny) -> None:
    source, even = uneven(tiny), FewShotEpisodes(tiny, 3, 2, 2, seed=4)
    seen = set()
    for index in range(40):
        ids, balanced = source.draw("train", index), even.draw("train", index)
        assert (ids.classes == balanced.classes).all() and (ids.support == balanced.support).all()
        counts = (ids.query >= 0).sum(1)
        assert counts.sum() == 6 and source.shape == even.shape
        seen.add(tuple(counts.tolist()))
        for support, query in zip(ids.support, ids.query, strict=True):
            drawn = [*support, *query[query >= 0]]
            assert len(set(drawn)) == len(drawn) and (query[(query >= 0).sum() :] == -1).all()
        again = uneven(tiny).draw("train", index)
        assert (again.query == ids.query).all()
    assert len(seen) > 8 and any(0 in counts for counts in seen)
    other = replace(source, seed=5).draw("train", 0)
    assert other.query.tolist() != source.draw("train", 0).query.tolist()
    assert Manifest(source, "test", 9).hash != Manifest(even, "test", 9).hash


def test_a_batch_is_of_one_size_and_needs_no_padding(tiny) -> None:
    source = uneven(tiny)
    batch = source.batch("val", range(5))
    assert batch.query.weight is None and batch.query.y.shape == (5, 6)
    for t in range(5):
        ids = source.draw("val", t)
        order = [(n, q) for row in ids.query.T for n, q in enumerate(row) if q >= 0]
        assert batch.query.y[t].tolist() == [n for n, _ in order]
        pixels = [tiny.images("val", ids.classes[n], [q])[0] for n, q in order]
        want = torch.from_numpy(np.stack(pixels)).float() / 255
        torch.testing.assert_close(batch.query.x[t], want, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "sizes", [ImbalancedSizes(1, 3), MetaDatasetSizes(min_ways=2, max_support=9)]
)
def test_support_sets_may_be_unequal_too(tiny, sizes) -> None:
    source = uneven(tiny, sizes=sizes)
    batch = source.batch("train", range(8))
    for t in range(8):
        ids = source.draw("train", t)
        total, ways = int((ids.query >= 0).sum()), len(ids.classes)
        assert total % ways == 0 and int(batch.query.weight[t].sum()) == total
        for support, query in zip(ids.support, ids.query, strict=True):
            drawn = [*support[support >= 0], *query[query >= 0]]
            assert len(set(drawn)) == len(drawn) and len(support[support >= 0]) >= 1
    assert {int((source.draw("train", t).query >= 0).sum(1).min()) for t in range(40)} >= {0}


def test_a_file_of_them_gives_them_again(tiny, tmp_path) -> None:
    manifest = Manifest(uneven(tiny), "test", 10)
    write_manifest(manifest, tmp_path / "m.json")
    again = read_manifest(tmp_path / "m.json", tiny)
    assert again.hash == manifest.hash and again.source.shape == (3, 2, 2)
    for got, want in zip(again.batches(4), manifest.batches(4), strict=True):
        for a, b in zip(got.parts, want.parts, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert episode_sheet(manifest.source, "test", 3).height > 0


def test_features_are_those_of_the_same_images(tiny) -> None:
    source = uneven(tiny)
    found = used([source], "test", 6)
    images = tiny.images("test", found.classes, found.examples)
    features = torch.from_numpy(images).float().flatten(1) / 255
    taken = FeatureEpisodes(source, features, found.row, "test").batch("test", range(6))
    want = source.batch("test", range(6))
    for got, part in zip(taken.parts, want.parts, strict=True):
        torch.testing.assert_close(got.x, part.x.flatten(2), rtol=0, atol=1e-7)
        assert torch.equal(got.y, part.y)
    marked = {(c, e) for c, e in zip(found.classes, found.examples, strict=True)}
    wanted = set()
    for ids in (source.draw("test", i) for i in range(6)):
        for part in (ids.support, ids.query):
            wanted |= {
                (c, e) for c, row in zip(ids.classes, part, strict=True) for e in row if e >= 0
            }
    assert marked == wanted


def test_mixtures_draw_them_too(tiny, tmp_path) -> None:
    both = Mixture({"a": tiny, "b": tiny_dataset(tmp_path, salt=3)})
    source = make_episodes(both, ways=3, shots=1, queries=2, seed=0, concentration=2.0)
    batch = source.batch("test", range(6))
    assert batch.query.weight is None and batch.query.y.shape == (6, 6)
    assert any(torch.bincount(y, minlength=3).max() > 2 for y in batch.query.y)


def test_what_cannot_be(tiny) -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="sampling.concentration=.* must be above 0"):
            FewShotEpisodes(tiny, 3, 1, 2, concentration=wrong)
    with pytest.raises(UsageError, match="use balanced queries"):
        EpisodeTasks(uneven(tiny), "test", 3)[0]
