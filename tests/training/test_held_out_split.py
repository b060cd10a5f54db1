"""The images of the base classes are parted once, and the same for every run."""

import numpy as np
import pytest

from metalearn.data.dataset import ImageDataset, with_rotations, without_rotations
from metalearn.data.store import build_store
from metalearn.errors import UsageError
from metalearn.training.held_out_split import HeldOutSplit, hold_out

SIZES = [20, 7, 13, 20, 5]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    blocks = (np.full((n, 4, 4, 1), c, np.uint8) for c, n in enumerate(SIZES))
    names = [f"c{c}" for c in range(len(SIZES))]
    return build_store(tmp_path_factory.mktemp("store") / "s", "s", names, blocks)


def dataset(store, train, split: str = "train") -> ImageDataset:
    empty = without_rotations(np.array([], np.int64))
    return ImageDataset(
        "s", store, {**dict.fromkeys(("train", "val", "test"), empty), split: train}
    )


def listed(part) -> list[tuple[int, int]]:
    return list(zip(part.classes.tolist(), part.examples.tolist(), strict=True))


def same(a: HeldOutSplit, b: HeldOutSplit) -> bool:
    return all(listed(x) == listed(y) for x, y in zip(a, b, strict=True))


def test_every_image_is_in_one_part_and_the_shares_are_whole(store) -> None:
    parts = hold_out(dataset(store, without_rotations(np.arange(5))), 0.1, 0.2)
    everything = sorted(sum(map(listed, parts), []))
    assert everything == [(c, e) for c, n in enumerate(SIZES) for e in range(n)]
    assert [len(part) for part in parts] == [65 - 7 - 13, 7, 13]  # 6.5 is rounded up
    for share, part in ((0.1, parts.val), (0.2, parts.test)):
        counts = np.bincount(part.classes, minlength=5)
        assert (np.abs(counts - share * np.array(SIZES)) < 1).all()


def test_it_is_the_same_but_for_another_seed(store) -> None:
    data = dataset(store, without_rotations(np.arange(5)))
    assert same(hold_out(data, 0.2, 0.2), hold_out(data, 0.2, 0.2))
    assert not same(hold_out(data, 0.2, 0.2), hold_out(data, 0.2, 0.2, seed=1))
    # A larger part for tests leaves what is held out for validation as it is.
    assert listed(hold_out(data, 0.2, 0.2).val) == listed(hold_out(data, 0.2, 0.4).val)


def test_turned_classes_are_classes_that_hold_out_the_same_drawings(store) -> None:
    parts = hold_out(dataset(store, with_rotations(np.array([0, 3]))), 0.1, 0.05)
    assert [len(part) for part in parts] == [4 * 34, 4 * 4, 4 * 2]
    for part in parts:
        drawings = [sorted(part.examples[part.classes == label]) for label in range(8)]
        assert all(own == drawings[4 * (label // 4)] for label, own in enumerate(drawings))


def test_one_image_of_each_class_trains_however_much_is_held_out(store) -> None:
    parts = hold_out(dataset(store, without_rotations(np.arange(5))), 0.6, 0.39)
    assert set(parts.train.classes) == set(range(5))
    assert len(sum(map(listed, parts), [])) == sum(SIZES)


def test_nothing_held_out(store) -> None:
    parts = hold_out(dataset(store, without_rotations(np.arange(5))), 0, 0)
    assert [len(part) for part in parts] == [65, 0, 0]


def test_mistakes(store) -> None:
    data = dataset(store, without_rotations(np.arange(5)))
    for val, test in ((0.5, 0.5), (-0.1, 0.1), (float("nan"), 0)):
        with pytest.raises(UsageError, match="must be 0 or more, and below 1 together"):
            hold_out(data, val, test)
    with pytest.raises(UsageError, match="held_out.val=0.001 of 65 images is none"):
        hold_out(data, 0.001, 0.1)
    with pytest.raises(UsageError, match="s has no classes in its train split"):
        hold_out(dataset(store, without_rotations(np.arange(5)), "test"), 0.1, 0.1)
