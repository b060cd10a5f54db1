"""Properties of every N-way K-shot episode."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import chdtrc

from metalearn.data import ImageDataset
from metalearn.episodes import FewShotEpisodes, make_episodes
from metalearn.errors import UsageError
from tests.images import tiny_dataset

SPLITS = ("train", "val", "test")
quick = settings(deadline=None, max_examples=60, database=None)
sources = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**40))


def stored(dataset: ImageDataset, split: str, class_: int, example: int) -> np.ndarray:
    """Image `[1, H, W]` in [0, 1], straight from the store's array."""
    index, turns = dataset.splits[split]
    image = dataset.store.images[dataset.store.offsets[index[class_]] + example, :, :, 0]
    return np.rot90(image, turns[class_])[None].astype(np.float32) / np.float32(255)


@quick
@given(sources, st.sampled_from(SPLITS), st.integers(0, 10**9))
def test_an_episode_is_sound(tiny, shape, split, index) -> None:
    ways, shots, queries, seed = shape
    source = FewShotEpisodes(tiny, ways, shots, queries, seed)
    ids = source.draw(split, index)
    assert len(set(ids.classes)) == ways == len(ids.classes)
    assert set(ids.classes) <= set(range(tiny.class_count(split)))
    assert ids.support.shape == (ways, shots) and ids.query.shape == (ways, queries)
    for class_, support, query in zip(*ids[:3], strict=True):
        drawn = [*support, *query]
        assert len(set(drawn)) == shots + queries, "an example came twice"
        assert set(drawn) <= set(range(tiny.examples_in(split, class_)))


@quick
@given(sources, st.sampled_from(SPLITS), st.integers(0, 10**9))
def test_images_are_the_stores_and_labels_go_shot_by_shot(tiny, shape, split, index) -> None:
    ways, shots, queries, seed = shape
    source = FewShotEpisodes(tiny, ways, shots, queries, seed)
    ids = source.draw(split, index)
    episodes = source.batch(split, [index])
    for batch, which, each in zip(
        episodes.parts, (ids.support, ids.query), (shots, queries), strict=True
    ):
        assert batch.weight is None
        assert batch.x.shape == (1, ways * each, 1, 4, 4) and batch.x.dtype == torch.float32
        assert batch.y.dtype == torch.int64
        assert batch.y[0].tolist() == [n for _ in range(each) for n in range(ways)]
        want = [
            stored(tiny, split, ids.classes[n], which[n, k])
            for k in range(each)
            for n in range(ways)
        ]
        assert np.array_equal(batch.x[0].numpy(), np.stack(want))


@quick
@given(st.permutations(range(8)), st.lists(st.integers(0, 8), max_size=3), st.integers(0, 99))
def test_neither_order_nor_batch_nor_global_state_matters(tiny, order, cuts, seed) -> None:
    alone = {}
    for index in range(8):
        alone[index] = FewShotEpisodes(tiny, 3, 2, 2, seed).batch("val", [index])
    source = FewShotEpisodes(tiny, 3, 2, 2, seed)
    edges = sorted({0, 8, *cuts})
    with torch.random.fork_rng(devices=[]):
        for start, stop in pairwise(edges):
            torch.rand(3)
            np.random.rand(2)
            indices = order[start:stop]
            batch = source.batch("val", indices)
            for row, index in enumerate(indices):
                for got, want in zip(batch.parts, alone[index].parts, strict=True):
                    assert torch.equal(got.x[row], want.x[0])
                    assert torch.equal(got.y[row], want.y[0])


def test_other_seeds_splits_and_indices_give_other_episodes(tiny) -> None:
    seen = {
        (split, seed, index): FewShotEpisodes(tiny, 3, 2, 2, seed).fingerprint(split, index)
        for split in SPLITS
        for seed in (0, 1, 11, 111)
        for index in (0, 1, 2, 11, 111, 1111)
    }
    assert len(set(seen.values())) == len(seen) == 72


def test_other_pixels_give_other_draws(tiny, tmp_path) -> None:
    other = FewShotEpisodes(tiny_dataset(tmp_path, salt=1), 3, 2, 2)
    ours = FewShotEpisodes(tiny, 3, 2, 2)
    assert all(ours.fingerprint("val", i) != other.fingerprint("val", i) for i in range(20))


def test_no_image_is_in_two_splits_and_all_come_up(tiny) -> None:
    rows: dict[str, set[bytes]] = {}
    for split in SPLITS:
        source = FewShotEpisodes(tiny, 3, 2, 2)
        index = tiny.splits[split].index
        drawn = [source.draw(split, i) for i in range(400)]
        rows[split] = {
            int(tiny.store.offsets[index[c]] + example)
            for ids in drawn
            for c, *examples in zip(*ids[:3], strict=True)
            for example in np.concatenate(examples)
        }
    assert not rows["train"] & rows["val"]
    assert not rows["train"] & rows["test"]
    assert not rows["val"] & rows["test"]
    assert set().union(*rows.values()) == set(range(len(tiny.store.images)))


def uniform(counts: np.ndarray) -> float:
    """p-value of the chi-square test that all cells are equally likely."""
    expected = counts.sum() / counts.size
    assert expected > 20
    return float(chdtrc(counts.size - 1, ((counts - expected) ** 2 / expected).sum()))


def test_classes_are_uniform_in_every_ordered_pair(tiny) -> None:
    source = FewShotEpisodes(tiny, 2, 1, 1, seed=5)
    counts = np.zeros((20, 20))
    for index in range(12000):
        counts[tuple(source.draw("train", index).classes)] += 1
    assert not counts.diagonal().any()
    assert uniform(counts[~np.eye(20, dtype=bool)]) > 1e-3
    assert uniform(counts.sum(0)) > 1e-3


def test_examples_are_uniform_in_every_ordered_pair(tiny) -> None:
    source = FewShotEpisodes(tiny, 1, 1, 1, seed=6)
    counts = {class_: np.zeros((8, 8)) for class_ in range(4)}
    for index in range(8000):
        ids = source.draw("test", index)
        counts[int(ids.classes[0])][ids.support[0, 0], ids.query[0, 0]] += 1
    for class_, table in counts.items():
        size = int(tiny.examples_in("test", np.array(class_)))
        assert not table[size:].any() and not table[:, size:].any()
        cells = table[:size, :size][~np.eye(size, dtype=bool)]
        assert uniform(cells) > 1e-3


@pytest.mark.parametrize(
    ("shape", "split", "line"),
    [
        (
            {"ways": 4},
            "val",
            "episodes.ways=4, but tiny has 3 classes in its val split; use at most 3",
        ),
        (
            {"shots": 3, "queries": 4},
            "test",
            "episodes.shots + episodes.queries = 7, but a class of tiny (test) has 6 examples; "
            "use at most 6, or leave out class09 (6), as dataset=folder does by "
            "dataset.min_images=7",
        ),
        ({}, "tset", "split='tset' is not known; use train, val, test"),
    ],
)
def test_what_a_split_cannot_give(tiny, shape, split, line) -> None:
    source = make_episodes(tiny, **{"ways": 3, "shots": 1, "queries": 1, "seed": 0, **shape})
    with pytest.raises(UsageError) as caught:
        source.check(split)
    assert str(caught.value) == line


@pytest.mark.parametrize("name", ["ways", "shots", "queries"])
@pytest.mark.parametrize("value", [0, -2])
def test_a_shape_that_is_not_positive(tiny, name, value) -> None:
    with pytest.raises(UsageError) as caught:
        make_episodes(tiny, **{"ways": 3, "shots": 1, "queries": 1, "seed": 0, name: value})
    assert str(caught.value) == f"episodes.{name}={value} must be 1 or more"


def test_the_largest_shape_fits(tiny) -> None:
    source = make_episodes(tiny, ways=4, shots=2, queries=4, seed=0)
    source.check("test")
    ids = source.draw("test", 0)
    assert sorted(ids.classes) == [0, 1, 2, 3]
