"""Splits that share nothing, and a gather that equals the plain loop."""

import numpy as np
import pytest
import torch

from metalearn.data import Classes, DataError, ImageDataset, ImageStore
from metalearn.data.dataset import with_rotations, without_rotations
from metalearn.episodes import FewShotEpisodes
from metalearn.errors import UsageError
from tests.preloaded import Process

CPU = torch.device("cpu")


def store(side: tuple[int, int] = (6, 6), channels: int = 3) -> ImageStore:
    """Six classes of 2, 3, 2, 3, 2 and 3 images."""
    counts = np.tile([2, 3], 3)
    images = np.random.default_rng(0).integers(0, 256, (15, *side, channels), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return ImageStore("tiny", images, tuple("abcdef"), offsets, "digest")


def dataset() -> ImageDataset:
    splits = {
        "train": with_rotations(np.array([3, 0])),
        "val": without_rotations(np.array([1])),
        "test": without_rotations(np.array([5, 2])),
    }
    return ImageDataset("tiny", store(), splits)


def test_gather_equals_the_plain_loop() -> None:
    data = dataset()
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 8, (4, 5, 1))
    examples = rng.integers(0, 2, (4, 5, 7))
    images = data.images("train", classes, examples)
    assert images.shape == (4, 5, 7, 3, 6, 6) and images.dtype == np.uint8
    index, turns = data.splits["train"]
    for place in np.ndindex(4, 5, 7):
        c = classes[place[0], place[1], 0]
        plain = data.store.images[data.store.offsets[index[c]] + examples[place]]
        for _ in range(turns[c]):
            plain = np.rot90(plain)
        assert np.array_equal(images[place], plain.transpose(2, 0, 1))


@pytest.mark.parametrize("rows", [4, 15, 4096])
def test_the_device_gathers_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn.data.device._ROWS", rows)
    data = dataset()
    rng = np.random.default_rng(1)
    for split, count in (("train", 8), ("val", 1), ("test", 2)):
        for shape in ((), (5,), (4, 5, 7), (0, 3)):
            chosen = split, rng.integers(0, count, shape), rng.integers(0, 2, shape)
            images = data.images_on(CPU, *chosen)
            assert images.dtype == torch.uint8 and images.is_contiguous()
            assert np.array_equal(images.numpy(), data.images(*chosen))


def test_images_that_do_not_turn_need_not_be_square() -> None:
    parts = {"train": [3, 0], "val": [1], "test": [5]}
    splits = {name: without_rotations(np.array(index)) for name, index in parts.items()}
    data = ImageDataset("flat", store((4, 6)), splits)
    chosen = "train", np.array([[0], [1]]), np.arange(2)
    assert np.array_equal(data.images_on(CPU, *chosen).numpy(), data.images(*chosen))


@pytest.mark.parametrize("free", [None, 4 * 4 * 15 * 108 - 1, 4 * 4 * 15 * 108])
def test_a_quarter_of_the_free_memory_holds_four_turns(
    free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalearn.data.dataset.free_memory_bytes", lambda _: free)
    assert dataset().fits(CPU) == (free == 4 * 4 * 15 * 108)


def test_a_quarter_turn_is_counter_clockwise() -> None:
    images = np.zeros((1, 3, 3, 1), np.uint8)
    images[0, 0, 2] = 255  # top right
    one = ImageStore("one", np.repeat(images, 3, 0), tuple("abc"), np.arange(4), "")
    splits = {"train": with_rotations(np.array([0])), "val": without_rotations(np.array([1]))}
    data = ImageDataset("one", one, splits | {"test": without_rotations(np.array([2]))})
    corners = [tuple(np.argwhere(i[0])[0]) for i in data.images("train", np.arange(4), np.array(0))]
    assert corners == [(0, 2), (0, 0), (2, 0), (2, 2)]


def test_counts_names_and_shape() -> None:
    data = dataset()
    assert data.image_shape == (3, 6, 6)
    assert [data.class_count(s) for s in ("train", "val", "test")] == [8, 1, 2]
    assert data.examples_in("train", np.array([[0, 3], [4, 7]])).tolist() == [[3, 3], [2, 2]]
    assert data.splits["train"].names(data.store)[2:5] == ["d/rot180", "d/rot270", "a/rot000"]
    assert data.splits["test"].names(data.store) == ["f", "c"]


def test_digest_follows_the_splits_and_is_the_same_in_another_process() -> None:
    data = dataset()
    swapped = {**data.splits, "val": data.splits["test"], "test": data.splits["val"]}
    assert ImageDataset("tiny", data.store, swapped).digest != data.digest
    assert ImageDataset("renamed", data.store, data.splits).digest == data.digest
    told = "from tests.data.test_dataset import dataset; print(hash('a'), dataset().digest)"
    with Process(told) as other:  # where strings have other hashes
        hashed, digest = other.communicate()[0].split()
    assert int(hashed) != hash("a") and digest == data.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": without_rotations(np.array([0]))}, "class a is in both train and val"),
        ({"test": Classes(np.array([3]), np.array([2]))}, "class d is in both train and test"),
        ({"val": without_rotations(np.array([6]))}, "lacks"),
        ({"val": without_rotations(np.array([-1]))}, "lacks"),
        ({"val": without_rotations(np.array([1, 1]))}, "twice"),
        ({"val": Classes(np.array([1]), np.array([], int))}, "one length"),
        (
            {s: without_rotations(np.array([], int)) for s in ("train", "val", "test")},
            "no split has a class",
        ),
        ({"val": Classes(np.array([1]), np.array([4]))}, "0 to 3"),
        ({"dev": without_rotations(np.array([1]))}, "splits are"),
    ],
)
def test_wrong_splits_are_refused(change: dict[str, Classes], message: str, one_line) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ImageDataset("tiny", store(), {**dataset().splits, **change})
    one_line(caught)


def test_a_split_may_be_empty() -> None:
    none = without_rotations(np.array([], int))
    data = ImageDataset("tiny", store(), {**dataset().splits, "train": none, "val": none})
    assert [data.class_count(s) for s in ("train", "val", "test")] == [0, 0, 2]
    assert data.examples_in("train", np.arange(0)).tolist() == []
    assert data.splits["train"].names(data.store) == []
    chosen = "test", np.array([[0], [1]]), np.arange(2)
    assert np.array_equal(data.images_on(CPU, *chosen).numpy(), data.images(*chosen))
    with pytest.raises(IndexError):
        data.images("train", np.array([0]), np.array([0]))
    source = FewShotEpisodes(data, 2, 1, 1)
    source.check("test")
    with pytest.raises(UsageError, match="tiny has no classes in its train split; use another"):
        source.check("train")


@pytest.mark.parametrize("groups", [["a"], ["a"] * 7])
def test_groups_are_one_a_class(groups: list[str], one_line) -> None:
    with pytest.raises(DataError, match="every class needs one group") as caught:
        ImageDataset("tiny", store(), dataset().splits, groups)
    one_line(caught)
    assert ImageDataset("tiny", store(), dataset().splits, "aabbcc").digest == dataset().digest


def test_only_square_images_turn() -> None:
    with pytest.raises(DataError, match="only square images can be rotated, not 4x6"):
        ImageDataset("tiny", store((4, 6)), dataset().splits)


def test_what_is_not_there_is_refused() -> None:
    data = dataset()
    for example in (3, -1):
        with pytest.raises(DataError, match="lacks an example"):
            data.images("train", np.array([0]), np.array([example]))
        with pytest.raises(DataError, match="lacks an example"):
            data.images_on(CPU, "train", np.array([0]), np.array([example]))
    for number in (8, -1):
        with pytest.raises(IndexError):
            data.images("train", np.array([number]), np.array([0]))
        with pytest.raises(IndexError):
            data.images_on(CPU, "train", np.array([number]), np.array([0]))
    with pytest.raises(DataError, match="no split 'dev'; choose from"):
        data.class_count("dev")
    with pytest.raises(DataError, match="no split 'dev'; choose from"):
        data.images_on(CPU, "dev", np.array([0]), np.array([0]))
