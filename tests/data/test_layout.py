"""Which folders are classes and splits, by their names; what is left out, and what is refused."""

import os
from pathlib import Path

import pytest
from PIL import Image

from metalearn.data import DataError, ImageDataset, folder
from tests.inputs.files import write_images as write

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))


def classes(data: ImageDataset) -> dict[str, list[str]]:
    """By split, what stands below its folder."""
    return {s: [n.partition("/")[2] for n in data.class_names(s)] for s in SPLITS}


@pytest.mark.parametrize(
    "tops",
    [
        ("base", "val", "novel"),
        ("Base", "Val", "NOVEL"),
        ("training", "validation", "testing"),
        ("meta-train", "meta-val", "meta-test"),
        ("meta_training", "meta_validation", "meta_testing"),
        ("train2017", "val2017", "test2017"),
        ("birds_train", "birds_val", "birds_test"),
        ("background_images", "dev", "evaluation"),
        ("train", "eval", "test"),
        ("trainval", "val", "test"),
    ],
    ids="/".join,
)
@pytest.mark.parametrize("above", ["", "data/"], ids=["top", "below"])
def test_folders_named_as_splits_are_kept(tmp_path: Path, tops, above) -> None:
    labels = [
        f"{above}{top}/{c}" for top, own in zip(tops, ("ab", "c", "d"), strict=True) for c in own
    ]
    data = folder(write(tmp_path / "r", *labels, "extra/q", count=1), size=2)
    assert classes(data) == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert len(data.notes) == 1 and "1 images in extra are left out" in data.notes[0]


def test_other_folders_and_files_are_left_out_with_a_line(tmp_path: Path, caplog) -> None:
    root = write(tmp_path / "r", "train/a", "val/b", "test/c", "unlabeled/q", "trainval/a", count=1)
    image = Image.new("RGB", (4, 4))
    for name in ("1.jfif", "2.JPE", "3.webp", "4.TIF", "5", "6.dat"):
        kind = {".webp": "WEBP", ".TIF": "TIFF", ".dat": "PNG", "": "PNG"}.get(Path(name).suffix)
        image.save(root / "train" / "a" / name, kind or "JPEG")
    others = {"1.heic": b"\0\0\0\x18ftypheic", "2.HEIC": b"", "a.xml": b"<a/>", "Thumbs.db": b""}
    for name, content in {**others, "raw.nef": b"II*\0"}.items():
        (root / "val" / "b" / name).write_bytes(content)
    data = folder(root, size=2)
    assert classes(data) == {"train": ["a"], "val": ["b"], "test": ["c"]}
    assert data.sizes["train"].tolist() == [7]
    outside, endings = data.notes
    assert outside.startswith("2 images in trainval, unlabeled are left out: train, val, test")
    assert endings.startswith("4 files are left out") and "2 .heic, 1 .nef, 1 .xml" in endings
    assert [r.getMessage() for r in caplog.records] == [f"r: {note}" for note in data.notes]


def test_splits_made_of_links(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "all/a", "all/b", "all/c", "all/d", count=1)
    for split, own in zip(SPLITS, ("ab", "c", "d"), strict=True):
        (root / split).mkdir()
        for c in own:
            (root / split / c).symlink_to(root / "all" / c)
    (root / "train" / "a" / "back").symlink_to(root)
    assert classes(folder(root, size=2)) == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    (root / "test" / "e").symlink_to(root / "all" / "a")
    with pytest.raises(DataError, match="are one file by a link, of classes test/e and train/a"):
        folder(root, size=2)


def test_a_hard_link_is_one_file(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "a", "b", "c", count=1)
    os.link(root / "a" / "0.png", root / "b" / "9.png")
    with pytest.raises(DataError, match="are one file by a link"):
        folder(root, size=2)


REFUSED = {
    "two of a split": (["train/a", "training/b", "val/c", "test/d"], "train and training of r"),
    "one split alone": (["trainval/a", "train/a", "x/b"], "no folder val and test beside train"),
    "background and evaluation": (
        ["images_background/K/c1", "images_evaluation/L/c2"],
        "no folder val beside images_background, images_evaluation",
    ),
    "images in the splits": (["train", "val", "test", "more"], "lies in test itself"),
    "splits of each class": (["cat/train", "cat/test", "cow/train"], "class_folder=first"),
    "two sets of splits": (["x/train/a", "x/test/b", "y/train/c", "y/val/d"], "each have folders"),
    "days of a class": (["a/mon", "a/tue", "b/mon", "c/mon"], "class_folder=first (a), last (mon)"),
    "images beside folders": (["a", "a/mon", "b", "c"], "a of r holds images and a folder"),
    "few outer folders": (["a/1", "a/2", "b/3", "b/4"], "classes in 2 folders, and fractions"),
    "days in two splits": (["train/a/mon", "val/b", "test/a/tue"], "where a is a class, keep it"),
    "class below another": (["train/a/cat", "val/b", "test/cat"], "where cat is a class, keep it"),
    "class in two splits": (["train/a", "val/b", "test/a"], "class a of r is in both"),
}


@pytest.mark.parametrize("labels, said", REFUSED.values(), ids=REFUSED)
def test_what_may_be_one_class_on_two_sides_is_refused(
    tmp_path: Path, one_line, labels, said
) -> None:
    with pytest.raises(DataError) as caught:
        folder(write(tmp_path / "r", *labels, count=1), size=2)
    assert said in one_line(caught)


def test_class_folder_says_what_a_class_is(tmp_path: Path) -> None:
    root = write(tmp_path / "r", *(f"{a}/{b}" for a in "xyz" for b in "klm"), count=2)
    first, last = (folder(root, size=2, class_folder=which) for which in ("first", "last"))
    assert first.store.classes == ("x", "y", "z") and last.store.classes == ("k", "l", "m")
    assert first.sizes["train"].tolist() == last.sizes["train"].tolist() == [6]
    assert len(folder(root, size=2, class_folder="path").store.classes) == 9
    # One reading is safe without being told: what lies in one folder stays in one split.
    root = write(tmp_path / "s", *(f"{a}/{a}{b}" for a in "xyz" for b in range(3)), count=1)
    data = folder(root, size=2)
    sides = [{name[0] for name in data.class_names(split)} for split in SPLITS]
    assert sorted(map(len, sides)) == [1, 1, 1] and set.union(*sides) == {"x", "y", "z"}
    assert "9 folders within 3 are a class each" in data.notes[0]


def test_classes_of_few_images_are_left_out_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "r", "cat", "cow", "dog", count=3)
    write(root, "ant", "fox", count=1)
    data = folder(root, size=2, min_images=2)
    assert data.store.classes == ("cat", "cow", "dog")
    assert data.notes == (
        "2 classes have fewer than min_images=2 images and are left out: ant (1), fox (1)",
    )
