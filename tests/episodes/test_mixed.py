"""Several data sets as one: proportions, images of one shape, manifests."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from metalearn.data import DataError, ImageDataset, Mixture
from metalearn.data.dataset import without_rotations
from metalearn.data.store import build_store
from metalearn.episodes import (
    FewShotEpisodes,
    Manifest,
    MetaDatasetSizes,
    MixedEpisodes,
    make_episodes,
    read_manifest,
    write_manifest,
)
from metalearn.errors import UsageError
from tests.images import tiny_dataset

SHAPE = {"ways": 3, "shots": 1, "queries": 2, "seed": 0}


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> ImageDataset:
    """12 classes of 5 images in colour, [3, 6, 6]."""
    rng = np.random.default_rng(3)
    blocks = (rng.integers(0, 256, (5, 6, 6, 3), np.uint8) for _ in range(12))
    folder = tmp_path_factory.mktemp("colours") / "colours"
    store = build_store(folder, "colours", [f"c{i}" for i in range(12)], blocks)
    parts = np.split(np.arange(12), [4, 8])
    splits = dict(zip(("train", "val", "test"), map(without_rotations, parts), strict=True))
    return ImageDataset("colours", store, splits)


@pytest.fixture
def mixture(tiny, colours) -> Mixture:
    return Mixture({"tiny": tiny, "colours": colours}, {"train": {"tiny": 1, "colours": 3}}, 8)


def drawn(source, split: str, count: int) -> list[str]:
    return [source.draw(split, index).member for index in range(count)]


def test_proportions(mixture) -> None:
    source = make_episodes(mixture, **SHAPE)
    assert isinstance(source, MixedEpisodes)
    names, counts = np.unique(drawn(source, "train", 2000), return_counts=True)
    assert names.tolist() == ["colours", "tiny"]
    assert chisquare(counts, [1500, 500]).pvalue > 1e-3
    counts = np.unique(drawn(source, "val", 2000), return_counts=True)[1]
    assert chisquare(counts).pvalue > 1e-3  # a split that is not named: equal parts


def test_a_set_without_a_share_is_never_drawn_nor_checked(tiny, colours) -> None:
    shares = {"train": {"colours": 1}, "test": {"tiny": 2}}
    source = make_episodes(
        Mixture({"tiny": tiny, "colours": colours}, shares), **{**SHAPE, "ways": 4}
    )
    assert set(drawn(source, "train", 50)) == {"colours"}
    assert set(drawn(source, "test", 50)) == {"tiny"}
    source.check("train")
    with pytest.raises(UsageError, match="tiny has 3 classes in its val split"):
        source.check("val")


def test_images_are_those_of_the_sets_brought_to_one_shape(mixture) -> None:
    source = make_episodes(mixture, **SHAPE)
    batch = source.batch("train", range(12))
    assert batch.support.x.shape == (12, 3, 3, 8, 8) and batch.support.weight is None
    seen = set()
    for index in range(12):
        ids = source.draw("train", index)
        seen.add(ids.member)
        own = FewShotEpisodes(mixture.sets[ids.member], 3, 1, 2).batch("train", [index])
        for got, want in zip(batch.parts, own.parts, strict=True):
            x = F.interpolate(want.x[0], (8, 8), mode="bilinear", antialias=True)
            assert torch.equal(got.x[index], x.expand(-1, 3, -1, -1))
            assert torch.equal(got.y[index], want.y[0])
    assert seen == {"tiny", "colours"}


@pytest.mark.parametrize("sizes", [None, MetaDatasetSizes(min_ways=2)])
def test_a_manifest_is_read_back(mixture, sizes, tmp_path) -> None:
    source = make_episodes(mixture, **SHAPE, sizes=sizes)
    manifest = Manifest(source, "val", 20)
    write_manifest(manifest, tmp_path / "m.json")
    again = read_manifest(tmp_path / "m.json", mixture)
    assert again.hash == manifest.hash and again.source.shape == source.shape
    for got, want in zip(again.batches(7), manifest.batches(7), strict=True):
        for a, b in zip(got.parts, want.parts, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
            assert (a.weight is None) == (sizes is None)
            assert a.weight is None or torch.equal(a.weight, b.weight)


def test_another_mixture_is_other_data(mixture, tiny, colours, tmp_path) -> None:
    write_manifest(Manifest(make_episodes(mixture, **SHAPE), "val", 3), tmp_path / "m.json")
    sets = {"tiny": tiny, "colours": colours}
    for other in (
        Mixture(sets, {}, 8),
        Mixture(sets, mixture.proportions, 9),
        Mixture({**sets, "tiny": tiny_dataset(tmp_path, salt=1)}, mixture.proportions, 8),
    ):
        assert other.digest != mixture.digest
        with pytest.raises(DataError, match="it lists images of tiny\\+colours with hash"):
            read_manifest(tmp_path / "m.json", other)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"proportions": {"tset": {"tiny": 1}}}, "proportions of tset; use train, val, test"),
        ({"proportions": {"val": {"tinny": 1}}}, "names tinny; it has tiny, colours"),
        ({"proportions": {"val": {"tiny": 0}}}, "0 or more each, and not all 0"),
        ({"proportions": {"val": {"tiny": -1, "colours": 2}}}, "0 or more each"),
        ({"proportions": {"val": 3}}, "val=3 must name data sets, each with a number"),
        ({"proportions": {"val": {"tiny": "x"}}}, "must name data sets, each with a number"),
        ({"channels": 1}, "colours is in colour; use dataset.channels=3"),
        ({"size": 0}, "size=0 must be 1 or more"),
        ({"sets": {}}, "needs two data sets or more"),
    ],
)
def test_what_makes_no_sense(tiny, colours, change, line) -> None:
    with pytest.raises(DataError, match=line):
        Mixture(**{"sets": {"tiny": tiny, "colours": colours}, **change})
