"""Splits by lists: text with a byte order mark, easyfsl's JSON, LibFewShot's CSV."""

import json
import tarfile
from pathlib import Path

import pytest

from metalearn.data import DataError, ImageDataset, folder
from tests.inputs.files import write_images as write

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


def names(data: ImageDataset) -> list[list[str]]:
    return [data.class_names(split) for split in SPLITS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text(tmp_path: Path, encoding: str) -> None:
    root = write(tmp_path / "r", "a", "b", "ć", "d", count=1)
    for split, label in zip(SPLITS, "abć", strict=True):
        (tmp_path / f"{split}.txt").write_text(f"{label}/\r\n", encoding=encoding)
    data = folder(root, size=2, splits=tmp_path)
    assert names(data) == [["a"], ["b"], ["ć"]]
    assert data.notes == ("classes that stand in no list are left out: d",)


def test_lists_beside_the_classes_are_the_splits(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "a", "b", "c", "d", count=1)
    for split, label in zip(SPLITS, "abc", strict=True):
        (root / f"{split}.txt").write_text(label)
    assert names(folder(root, size=2)) == [["a"], ["b"], ["c"]]
    (root / "train.txt").write_text("a/0.png 0")
    data = folder(root, size=2)
    assert sum(map(len, names(data))) == 4
    assert "test.txt" in data.notes[0] and "say nothing of the splits" in data.notes[0]


def easyfsl(place: Path, **labels: str) -> Path:
    for split, label in labels.items():
        specs = {"class_names": [label], "class_roots": [f"./data/CUB/images/{label}"]}
        (place / f"{split}.json").write_text(json.dumps(specs))
    return place


def test_json_of_easyfsl(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "images/001.A", "images/002.B", "images/003.C", count=1)
    easyfsl(root, train="002.B", val="001.A", test="003.C")
    for data in (folder(root, size=2), folder(root / "images", size=2, splits=root)):
        assert names(data) == [["002.B"], ["001.A"], ["003.C"]] and data.notes == ()
    easyfsl(root, val="009.Z")
    with pytest.raises(DataError, match="names 1 classes that r lacks, such as './data/CUB"):
        folder(root, size=2)
    (root / "val.json").write_text("[3]")
    with pytest.raises(DataError, match="no list of class_names and class_roots"):
        folder(root, size=2)


def libfewshot(root: Path) -> Path:
    """Six classes of two images, all in one folder."""
    write(root, "images", count=12, size=(4, 4))
    for number, split in enumerate(SPLITS):
        rows = [f"{i}.png,c{i // 2}" for i in range(4 * number, 4 * number + 4)]
        (root / f"{split}.csv").write_text("\r\n".join(["filename,label", *rows]), "utf-8-sig")
    return root


def test_csv_of_libfewshot(tmp_path: Path) -> None:
    root = libfewshot(tmp_path / "r")
    with tarfile.open(tmp_path / "packed.tbz2", "w:bz2") as file:
        file.add(root, "mini--ravi")
    for data in (folder(root, size=4), folder(tmp_path / "packed.tbz2", size=4)):
        assert names(data) == [["c0", "c1"], ["c2", "c3"], ["c4", "c5"]]
        red_green = data.store.images[data.store.offsets[2]][0, 0]
        assert red_green.tolist() == [0, 200, 100]  # image 4 of write_images, the first of c2


def test_csv_of_easyfsl(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "n1", "n2", "n3", count=2)  # of one name in each
    for split, label in zip(SPLITS, ("n2", "n1", "n3"), strict=True):
        (root / f"{split}.csv").write_text(f"class_name,image_name\n{label},0.png\n{label},1.png\n")
    assert names(folder(root, size=2)) == [["n2"], ["n1"], ["n3"]]


@pytest.mark.parametrize(
    "content, said",
    [
        ("filename,label\n99.png,c2\n", "names 1 images that are not there"),
        ("filename,label\n0.png,c0\n", "class c0 is in both train and val"),
        ("filename,label\n4.png,c2\n3.png,d\n", "image 3.png is in both train and val"),
        ("picture;kind\n0.png;c0\n", "its first row must name two columns"),
        ("filename,label\n", "its first row must name two columns"),
    ],
)
def test_a_wrong_csv_is_one_line(tmp_path: Path, one_line, content: str, said: str) -> None:
    root = libfewshot(tmp_path / "r")
    (root / "val.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        folder(root, size=2)
    assert said in one_line(caught)
