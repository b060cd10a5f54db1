"""Episodes whose ways and shots are drawn, and episodes of one superclass."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from metalearn.data import ImageDataset
from metalearn.data.dataset import without_rotations
from metalearn.data.store import build_store
from metalearn.episodes import FewShotEpisodes, ImbalancedSizes, MetaDatasetSizes
from metalearn.episodes.gather import padded_size
from metalearn.errors import UsageError

quick = settings(deadline=None, max_examples=60, database=None)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> ImageDataset:
    """60 classes of 4 to 63 images of one pixel, which tells class and example; 6 superclasses."""
    classes = [f"c{c:02d}" for c in range(60)]
    blocks = (
        np.stack([np.full((1, 1, 1), (7 * c + e) % 256, np.uint8) for e in range(4 + c)])
        for c in range(60)
    )
    store = build_store(tmp_path_factory.mktemp("many") / "many", "many", classes, blocks)
    index = np.arange(60)
    splits = {"train": without_rotations(index[:40]), "val": without_rotations(index[40:48])}
    groups = [f"group{c % 6}" for c in range(60)]
    return ImageDataset("many", store, {**splits, "test": without_rotations(index[48:])}, groups)


def meta_dataset(dataset: ImageDataset, ways: int = 30, queries: int = 10, **more):
    return FewShotEpisodes(dataset, ways, 1, queries, sizes=MetaDatasetSizes(**more))


@quick
@given(st.sampled_from(["train", "val", "test"]), st.integers(0, 10**9))
def test_a_meta_dataset_episode_is_sound(many, split, index) -> None:
    ids = meta_dataset(many).draw(split, index)
    sizes = many.examples_in(split, ids.classes)
    ways = len(ids.classes)
    assert 5 <= ways <= min(30, many.class_count(split))
    assert len(set(ids.classes)) == ways
    queries = ids.query.shape[1]
    assert queries == min(10, sizes.min() // 2)
    shots = (ids.support >= 0).sum(1)
    assert (shots >= 1).all() and (shots <= sizes - queries).all() and shots.sum() <= 500
    for support, query, size in zip(ids.support, ids.query, sizes, strict=True):
        drawn = [*support[support >= 0], *query]
        assert len(set(drawn)) == len(drawn) and max(drawn) < size and min(query) >= 0


def test_ways_are_uniform(many) -> None:
    source = meta_dataset(many, ways=12)
    ways = [len(source.draw("train", i).classes) for i in range(2000)]
    counts = np.bincount(ways, minlength=13)
    assert not counts[:5].any()
    assert chisquare(counts[5:]).pvalue > 1e-3


class Told:
    """A generator whose uniform numbers are given."""

    def __init__(self, *numbers) -> None:
        self.numbers = list(numbers)

    def random(self, size: int | None = None):
        return self.numbers.pop(0)


@pytest.mark.parametrize(
    ("beta", "alpha", "shots"),
    [
        # |c| = 20, 40; q = 10; left 10, 30. S = 6 + 16, and R = 1/3, 2/3 of the 20 beyond N.
        (0.5, [0.5, 0.5], [7, 14]),
        # exp(alpha) = 1/2 and nearly 2: R = 10/90, 80/90.
        (0.5, [0.0, 1 - 1e-9], [3, 18]),
        # The smallest S is one example a class. What a class lacks of its share is left out.
        (0.0, [0.9, 0.1], [1, 1]),
        (1 - 1e-9, [1 - 1e-9, 0.0], [10, 13]),
    ],
)
def test_shots_by_the_papers_formula(beta, alpha, shots) -> None:
    got, queries = MetaDatasetSizes().shots(
        Told(beta, np.array(alpha)),  # type: ignore[arg-type]
        np.array([20, 40]),
        10,
    )
    assert (got.tolist(), queries) == (shots, 10)


def test_max_support_and_contribution_bound_the_support_set() -> None:
    examples = np.full(10, 1000)
    rng = np.random.default_rng(1)
    few = [MetaDatasetSizes(max_support=50).shots(rng, examples, 10)[0].sum() for _ in range(200)]
    assert max(few) <= 50 and min(few) >= 10
    small = [
        MetaDatasetSizes(max_class_support=3).shots(rng, examples, 10)[0].sum() for _ in range(200)
    ]
    assert max(small) <= 30


@pytest.mark.parametrize(("kind", "want"), [("linear", [1, 3, 5, 7, 9]), ("step", [1, 1, 1, 9, 9])])
def test_imbalanced_shots(many, kind, want) -> None:
    source = FewShotEpisodes(many, 5, 1, 4, sizes=ImbalancedSizes(1, 9, kind))
    orders = set()
    for index in range(50):
        shots = (source.draw("test", index).support >= 0).sum(1).tolist()
        assert sorted(shots) == want
        orders.add(tuple(shots))
    assert len(orders) > 5, "which class gets which must be drawn"


def test_random_imbalance_is_uniform(many) -> None:
    source = FewShotEpisodes(many, 5, 1, 4, sizes=ImbalancedSizes(2, 6, "random"))
    shots = [(source.draw("test", i).support >= 0).sum(1) for i in range(400)]
    counts = np.bincount(np.concatenate(shots), minlength=7)
    assert not counts[:2].any()
    assert chisquare(counts[2:]).pvalue > 1e-3


def test_a_batch_of_unequal_tasks(many) -> None:
    source = meta_dataset(many)
    batch = source.batch("train", range(6))
    for part, name in zip(batch.parts, ("support", "query"), strict=True):
        assert part.weight is not None
        counts = []
        for t in range(6):
            ids = source.draw("train", t)
            which = getattr(ids, name)
            real = int(part.weight[t].sum())
            counts.append(real)
            assert real == (which >= 0).sum()
            assert part.weight[t].tolist() == [1.0] * real + [0.0] * (part.x.shape[1] - real)
            assert not part.x[t, real:].any() and not part.y[t, real:].any()
            # Shot by shot, one of every class that has so many.
            want = [
                (n, (7 * ids.classes[n] + which[n, k]) % 256)
                for k in range(which.shape[1])
                for n in range(len(ids.classes))
                if which[n, k] >= 0
            ]
            assert part.y[t, :real].tolist() == [n for n, _ in want]
            got = (part.x[t, :real].flatten() * 255).round()
            assert got.tolist() == [float(pixel) for _, pixel in want]
        assert part.x.shape[1] == padded_size(max(counts))


def test_what_a_task_holds_does_not_depend_on_its_batch(many) -> None:
    source = meta_dataset(many)
    together = source.batch("val", [3, 8, 1])
    for row, index in enumerate([3, 8, 1]):
        alone = source.batch("val", [index])
        for got, want in zip(together.parts, alone.parts, strict=True):
            real = int(want.weight.sum())
            assert torch.equal(got.x[row, :real], want.x[0, :real])
            assert torch.equal(got.y[row, :real], want.y[0, :real])
            assert int(got.weight[row].sum()) == real


def test_room_is_little_and_of_few_sizes() -> None:
    rooms = [padded_size(n) for n in range(1, 600)]
    assert all(n <= r < 1.5 * n for n, r in zip(range(2, 600), rooms[1:], strict=True))
    assert all(a <= b for a, b in pairwise(rooms)) and len(set(rooms)) <= 20 and rooms[0] == 1


def test_one_superclass_an_episode_all_equally_often(many) -> None:
    source = FewShotEpisodes(many, 2, 1, 1, within_superclass=True)
    source.check("test")
    seen = []
    for index in range(1200):
        ids = source.draw("test", index)
        groups = {many.groups[many.splits["test"].index[c]] for c in ids.classes}
        assert len(groups) == 1
        seen.append(groups.pop())
    names, counts = np.unique(seen, return_counts=True)
    assert len(names) == 6 and chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("change", "split", "line"),
    [
        (
            {"within_superclass": True},
            "test",
            "episodes.ways=5, but no superclass of many (test) has more than 2 classes; "
            "use at most 2",
        ),
        (
            {"sizes": MetaDatasetSizes(min_ways=9), "ways": 20},
            "val",
            "episodes.ways=9, but many has 8 classes in its val split; use at most 8",
        ),
        (
            {"sizes": ImbalancedSizes(1, 60)},
            "test",
            "the shots of sampling.sizes + episodes.queries = 63, but a class of many (test) has "
            "52 examples; use at most 52, or leave out c48 (52), c49 (53), c50 (54), c51 (55), "
            "c52 (56) and 6 more, as dataset=folder does by dataset.min_images=63",
        ),
    ],
)
def test_what_a_split_cannot_give(many, change, split, line) -> None:
    source = replace(FewShotEpisodes(many, 5, 1, 3), **change)
    with pytest.raises(UsageError) as caught:
        source.check(split)
    assert str(caught.value) == line


def test_settings_out_of_range(many, tiny) -> None:
    with pytest.raises(UsageError, match="tiny has no superclasses"):
        FewShotEpisodes(tiny, 2, 1, 1, within_superclass=True)
    with pytest.raises(UsageError, match="min_ways=1 must be 2 or more"):
        MetaDatasetSizes(min_ways=1)
    with pytest.raises(UsageError, match="high=1 no less"):
        ImbalancedSizes(2, 1)
    with pytest.raises(UsageError, match="must be linear, step or random"):
        ImbalancedSizes(1, 2, "steps")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="episodes.ways=4 is the largest number of ways"):
        meta_dataset(many, ways=4).check("train")
