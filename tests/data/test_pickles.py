"""Data sets as three pickles: read, and never run."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metalearn.data import DataError, folder
from tests.inputs.cifar import Evil, Python2

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


def images(seed: int, shape: tuple[int, ...] = (6, 4, 4, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def metaoptnet(place: Path, protocol: int | None = None) -> Path:
    """Two classes of three images in each split, under labels 10, 11, 20, 21, ..."""
    place.mkdir(exist_ok=True)
    for seed, split in enumerate(SPLITS, 1):
        table = {"data": images(seed), "labels": [10 * seed + i % 2 for i in range(6)]}
        (place / f"CIFAR_FS_{split}.pickle").write_bytes(pickle.dumps(table, protocol))
    return place


@pytest.mark.parametrize("protocol", range(6))
def test_metaoptnet(tmp_path: Path, protocol: int) -> None:
    data = folder(metaoptnet(tmp_path / "r", protocol), size=4)
    assert data.image_shape == (3, 4, 4)
    assert [data.class_names(s) for s in SPLITS] == [
        ["train/10", "train/11"], ["val/20", "val/21"], ["test/30", "test/31"]
    ]  # fmt: skip
    got = data.images("val", np.array([1, 1, 1]), np.arange(3))
    np.testing.assert_array_equal(got, images(2)[1::2].transpose(0, 3, 1, 2))


def test_as_python_2_wrote_it(tmp_path: Path) -> None:
    root = metaoptnet(tmp_path / "r")
    before = folder(root, size=4).store
    for seed, split in enumerate(SPLITS, 1):
        table = {b"data": images(seed), b"labels": [10 * seed + i % 2 for i in range(6)]}
        (root / f"CIFAR_FS_{split}.pickle").write_bytes(Python2.dumps(table))
    assert folder(root, size=4).store.digest == before.digest


def test_the_images_of_another_phase_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    phases = {
        "train_phase_train": 1,
        "train_phase_val": 4,
        "train_phase_test": 5,
        "val": 2,
        "test": 3,
    }
    for name, seed in phases.items():
        table = {"data": images(seed), "labels": np.repeat([0, 1], 3)}  # anew in every file
        path = root / f"miniImageNet_category_split_{name}.pickle"
        path.write_bytes(pickle.dumps(table))
    data = folder(root, size=4)
    got = data.images("train", np.array([1]), np.array([0]))
    np.testing.assert_array_equal(got[0], images(1)[3].transpose(2, 0, 1))


def test_mini_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    for seed, split in enumerate(SPLITS, 1):
        rows = {f"n{seed}0": [0, 2, 4], f"n{seed}1": [1, 3]}
        table = {"image_data": images(seed), "class_dict": rows}
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(table, 2))
    data = folder(root, size=4)
    assert data.class_names("test") == ["test/n30", "test/n31"]
    got = data.images("test", np.array([0, 0, 0]), np.arange(3))
    np.testing.assert_array_equal(got, images(3)[::2].transpose(0, 3, 1, 2))
    few = folder(root, size=4, min_images=3)
    assert few.class_names("test") == ["test/n30"] and "test/n31 (2)" in few.notes[0]


class Shapeless:
    """An array that says that its bytes are objects: numpy itself would follow them."""

    def __reduce__(self) -> tuple:
        return np.ndarray, ((2,), np.dtype("O"))


WRONG: dict[str, tuple[Any, str]] = {
    "runs": (Evil(), "asks for posix.mkdir"),
    "torch": (torch.zeros(2), "asks for torch._utils"),
    "objects": ({"data": Shapeless(), "labels": [0, 1]}, "not data and labels"),
    "floats": ({"data": images(1) / 255, "labels": [0] * 6}, "not data and labels"),
    "lengths": ({"data": images(1), "labels": [0] * 9}, "not data and labels"),
    "rows": ({"image_data": images(1), "class_dict": {"a": [0, 6]}}, "not data and labels"),
    "a list": ([1, 2], "holds a list"),
}


@pytest.mark.parametrize("content, said", WRONG.values(), ids=WRONG)
def test_anything_else_is_one_line(
    tmp_path: Path, monkeypatch, one_line, content: Any, said: str
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    root = metaoptnet(tmp_path / "r")
    (root / "CIFAR_FS_val.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError) as caught:
        folder(root, size=4)
    assert said in one_line(caught) and not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "name, said",
    [
        ("r/CIFAR_FS_val.pickle", "the folder that holds those of train, val and test"),
        ("x.npz", "images into a folder for each class"),
        ("x.hdf5", "images into a folder for each class"),
        ("x.7z", "unpack it"),
        ("x.tar.zst", "unpack it"),
    ],
)
def test_what_is_no_archive_is_told_what_is(tmp_path: Path, one_line, name: str, said: str) -> None:
    metaoptnet(tmp_path / "r")
    with (tmp_path / "x.npz").open("wb") as file:
        np.savez(file, a=1)
    for other in ("x.hdf5", "x.7z", "x.tar.zst"):
        (tmp_path / other).write_bytes(b"of its own kind")
    with pytest.raises(DataError) as caught:
        folder(tmp_path / name)
    line = one_line(caught)
    assert "give a folder, a .zip or a tar (.tar, .tar.gz" in line and said in line
