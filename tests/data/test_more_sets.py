"""miniImageNet and CUB from archives shaped like theirs; their packaged or computed splits."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, cub, mini_imagenet
from metalearn.data.cub import decode as decode_cub
from metalearn.data.mini_imagenet import decode as decode_mini
from metalearn.data.paths import store_folder
from metalearn.data.store import build_store

SPLITS = ("train", "val", "test")
# Of the sorted names, a line each: another value means another split.
MINI = {
    "train": "0f107a65ea80bf1e",
    "val": "489f8af43b256009",
    "test": "0db5287e659efd33",
}


def lists() -> dict[str, list[str]]:
    folder = Path(mini_imagenet.__globals__["__file__"]).parent / "splits"
    return {s: (folder / f"mini_imagenet_{s}.txt").read_text().split() for s in SPLITS}


def test_the_packaged_list() -> None:
    found = lists()
    assert [len(names) for names in found.values()] == [64, 16, 20]
    assert len(set().union(*found.values())) == 100
    for split, names in found.items():
        assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16] == MINI[split]


def write(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), colour).save(path)


@pytest.mark.parametrize("flat", [True, False])
def test_mini_imagenet(tmp_path: Path, one_line, flat: bool) -> None:
    wnids = ["n01532829", "n02165456"]
    for c, wnid in enumerate(wnids):
        for i in range(3):
            place = f"images/{wnid}{i:08d}.jpg" if flat else f"train/{wnid}/{i}.jpg"
            write(tmp_path / "mini" / place, (100 * c, 50 * i, 0))
    store = decode_mini(tmp_path / "mini", tmp_path / "store", 8, 2, 3)
    assert store.classes == tuple(wnids) and store.images.shape == (6, 8, 8, 3)
    assert abs(int(store.images[5, 4, 4, 0]) - 100) < 5  # JPEG
    with pytest.raises(DataError) as caught:
        decode_mini(tmp_path / "mini", tmp_path / "other", 8)
    assert "holds 2 classes of 3 to 3 images, not 100 of 600" in one_line(caught)


def test_mini_imagenet_by_its_list(tmp_path: Path, monkeypatch, one_line) -> None:
    names = sorted(set().union(*lists().values()))
    images = (np.full((2, 4, 4, 3), c, np.uint8) for c in range(100))
    build_store(tmp_path / "mini_imagenet-v1-4px", "mini_imagenet", names, images)
    data = mini_imagenet(tmp_path, size=4)
    assert [data.class_count(s) for s in SPLITS] == [64, 16, 20]
    assert data.splits["test"].names(data.store) == sorted(lists()["test"])
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        mini_imagenet(tmp_path, size=8)
    assert "cannot be downloaded freely" in one_line(caught)


@pytest.mark.parametrize("make", [cub, mini_imagenet], ids=["cub", "mini_imagenet"])
def test_an_archive_that_is_given_is_never_ignored(tmp_path: Path, one_line, make) -> None:
    """Although a store is there: it may be of another archive."""
    labels = (
        [f"{c:03d}.Bird" for c in range(200)] if make is cub else sorted(sum(lists().values(), []))
    )
    images = (np.full((2, 4, 4, 3), c, np.uint8) for c in range(len(labels)))
    build_store(tmp_path / f"{make.__name__}-v1-4px", make.__name__, labels, images)
    assert len(make(tmp_path, size=4).store.classes) == len(labels)
    write(tmp_path / "in" / "images" / labels[0] / "0.jpg", (0, 0, 0))
    with pytest.raises(DataError, match="in holds 1 ") as caught:
        make(tmp_path, tmp_path / "in", 4)
    one_line(caught)
    with pytest.raises(
        DataError, match="no folder or archive .*; correct dataset.archive"
    ) as caught:
        make(tmp_path, tmp_path / "nowhere.zip", 4)
    one_line(caught)


def test_a_file_changed_in_a_folder_is_another_store(tmp_path: Path) -> None:
    picture = tmp_path / "in" / "a" / "0.jpg"
    write(picture, (0, 0, 0))
    before = store_folder(tmp_path, "name", tmp_path / "in")
    assert before == store_folder(tmp_path, "name", tmp_path / "in" / ".." / "in")
    assert before.parent == tmp_path and before.name.startswith("name-")
    write(picture, (90, 20, 200))
    assert store_folder(tmp_path, "name", tmp_path / "in") != before
    assert store_folder(tmp_path, "name") == tmp_path / "name"


def test_cub(tmp_path: Path, one_line) -> None:
    for c in range(8):
        for i in range(2 + c % 2):
            name = f"CUB_200_2011/images/{c + 1:03d}.Bird{c}/Bird_{i}.jpg"
            write(tmp_path / "in" / name, (20 * c, 0, 0))
    write(tmp_path / "in" / "CUB_200_2011" / "parts" / "map" / "a.jpg", (0, 0, 0))
    made = shutil.make_archive(str(tmp_path / "CUB_200_2011"), "gztar", tmp_path / "in")
    with pytest.raises(DataError) as caught:
        decode_cub(Path(made), tmp_path / "other", 8)
    assert "holds 8 species under images/, not 200" in one_line(caught)
    decode_cub(Path(made), tmp_path / "cub-v1-8px", 8, classes=8)
    data = cub(tmp_path, size=8)
    assert len(data.store.images) == 20 and data.image_shape == (3, 8, 8)
    names = {split: data.splits[split].names(data.store) for split in SPLITS}
    assert names["train"] == ["001.Bird0", "003.Bird2", "005.Bird4", "007.Bird6"]
    assert names["val"] == ["002.Bird1", "006.Bird5"]
    assert names["test"] == ["004.Bird3", "008.Bird7"]
