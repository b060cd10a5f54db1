"""Any folder or zip of class folders: what becomes a class, a split, a pixel, and what is said."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, ImageDataset, folder
from tests.inputs.files import cut, damage, loose, unreadable, vast
from tests.inputs.files import write_images as write

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(data: ImageDataset) -> dict[str, list[str]]:
    return {split: data.splits[split].names(data.store) for split in SPLITS}


def test_fractions(tmp_path: Path) -> None:
    write(tmp_path / "my pets", *(f"pet{i:02d}" for i in range(20)))
    data = folder(tmp_path / "my pets", size=8)
    assert data.name == "my pets" and data.image_shape == (3, 8, 8)
    assert [data.class_count(s) for s in SPLITS] == [13, 3, 4]
    assert sorted(sum(names(data).values(), [])) == [f"pet{i:02d}" for i in range(20)]
    assert folder(tmp_path / "my pets", size=8).digest == data.digest
    assert names(folder(tmp_path / "my pets", size=8, seed=1)) != names(data)
    few = folder(tmp_path / "my pets", size=8, fractions=[0.98, 0.01, 0.01])
    assert [few.class_count(s) for s in SPLITS] == [18, 1, 1]


@pytest.mark.parametrize(
    "fractions, counts",
    [
        ([0, 0, 1], [0, 0, 20]),
        ([1, 0, 0], [20, 0, 0]),
        ([0.5, 0, 0.5], [10, 0, 10]),
        ([0.99, 0, 0.01], [19, 0, 1]),
        ([0.01, 0.99, 0], [1, 19, 0]),
        ([0.001, 0, 0.999], [1, 0, 19]),
    ],
)
def test_a_fraction_of_zero_is_no_class(tmp_path: Path, fractions, counts) -> None:
    root = write(tmp_path / "a", *(f"pet{i:02d}" for i in range(20)), count=1)
    data = folder(root, size=4, fractions=fractions)
    assert [data.class_count(s) for s in SPLITS] == counts
    assert sorted(sum(names(data).values(), [])) == [f"pet{i:02d}" for i in range(20)]


@pytest.mark.parametrize(
    "labels, groups",
    [
        (("cat", "dog", "cow"), None),
        (("pets/cat", "pets/dog", "farm/cow"), ["farm", "pets", "pets"]),
        (("pets/cat", "pets/dog", "cow"), None),
        (("train/cat", "val/cow", "test/dog"), None),
        (("train/pet/cat", "val/farm/cow", "test/pet/dog"), ["pet", "pet", "farm"]),
    ],
)
def test_groups_are_the_folders_above(tmp_path: Path, labels, groups) -> None:
    data = folder(write(tmp_path / "a", *labels), size=4, class_folder="path")
    assert data.groups == groups


def test_folders_that_are_splits(tmp_path: Path) -> None:
    write(tmp_path / "a", "train/cat", "train/dog", "valid/cow", "test/fox/red", "test/fox/grey")
    data = folder(tmp_path / "a", size=4)
    assert names(data) == {
        "train": ["train/cat", "train/dog"],
        "val": ["valid/cow"],
        "test": ["test/fox/grey", "test/fox/red"],
    }


def test_lists(tmp_path: Path) -> None:
    write(tmp_path / "a", "cat", "dog", "cow", "fox")
    (tmp_path / "lists").mkdir()
    for split, label in zip(SPLITS, ("dog", "cat", "fox"), strict=True):
        (tmp_path / "lists" / f"{split}.txt").write_text(f"{label}\n\n")
    data = folder(tmp_path / "a", size=4, splits=tmp_path / "lists")
    assert names(data) == {"train": ["dog"], "val": ["cat"], "test": ["fox"]}


def test_a_zip_is_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", "cat", "dog", "cow")
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path, "a")
    plain, packed = folder(tmp_path / "a", size=4), folder(tmp_path / "zipped.zip", size=4)
    assert plain.store.classes == packed.store.classes
    np.testing.assert_array_equal(plain.store.images, packed.store.images)


def test_pixels(tmp_path: Path) -> None:
    """The middle square or all of it; ink turned round; grey, transparent, deep and turned."""
    for label in ("a", "b", "c"):
        (tmp_path / "r" / label).mkdir(parents=True)
        halves = np.zeros((8, 16, 3), np.uint8)
        halves[:, 8:] = 200
        Image.fromarray(halves).save(tmp_path / "r" / label / "0.png")
    crop = folder(tmp_path / "r", size=8).store.images[0]
    assert (crop[:, :3] == 0).all() and (crop[:, -3:] == 200).all()
    turned = folder(tmp_path / "r", size=8, invert=True).store.images[0]
    np.testing.assert_array_equal(turned, 255 - crop)
    squeezed = folder(tmp_path / "r", size=8, fit="stretch").store.images[0]
    assert (squeezed[:, :2] == 0).all() and (squeezed[:, -2:] == 200).all()

    for label in ("a", "b", "c"):
        place = tmp_path / "g" / label
        place.mkdir(parents=True)
        Image.new("L", (8, 8), 50).save(place / "0.png")
        Image.new("LA", (8, 8), (0, 0)).save(place / "1.png")
        Image.fromarray(np.full((8, 8), 51200, np.uint16)).save(place / "2.png")
        wide = Image.new("L", (8, 8), 0)
        wide.paste(255, (0, 0, 8, 2))
        exif = wide.getexif()
        exif[0x0112] = 6  # to be turned a quarter clockwise
        wide.save(place / "3.png", exif=exif)
    data = folder(tmp_path / "g", size=8)
    assert data.image_shape == (1, 8, 8)
    grey, clear, deep, upright = data.store.images[:4, ..., 0]
    assert (grey == 50).all() and (clear == 255).all() and (deep == 200).all()
    assert (upright[:, 6:] == 255).all() and (upright[:, :6] == 0).all()
    assert folder(tmp_path / "g", size=8, channels=3).image_shape == (3, 8, 8)


def test_a_float_that_is_no_number_is_black(tmp_path: Path) -> None:
    for label in ("a", "b", "c"):
        (tmp_path / label).mkdir()
        values = np.full((8, 8), 51200, np.float32)
        values[0] = np.nan
        Image.fromarray(values).save(tmp_path / label / "0.tif")
    first = folder(tmp_path, size=8).store.images[0, ..., 0]
    assert (first[0] == 0).all() and (first[1:] == 200).all()


def test_a_changed_picture_is_seen(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "cat", "dog", "cow")
    before = folder(root, size=4).digest
    assert folder(root, size=4).digest == before
    Image.new("RGB", (8, 8), "red").save(root / "cat" / "0.png")
    assert folder(root, size=4).digest != before
    Image.new("RGB", (8, 8), "red").save(root / "cat" / "9.png")
    assert len(folder(root, size=4).store.images) == 10


def test_what_is_no_picture_is_left_alone(tmp_path: Path) -> None:
    root = write(tmp_path / "a", "cat", "dog", "cow")
    (root / "cat" / "notes.txt").write_text("!")
    (root / "cat" / "._0.png").write_bytes(b"resource fork")
    (root / "README.md").write_text("!")
    write(root, ".hidden")
    (root / "dog" / "0.png").rename(root / "dog" / "0.JPG")  # a wrong ending
    assert folder(root, size=4).store.classes == ("cat", "cow", "dog")


BAD = {
    "damaged": (damage, {}, "cow/1.png in"),
    "cut short": (cut, {}, "cow/1.png in"),
    "vast": (vast, {}, "cow/1.png in"),
    "loose": (loose, {}, "1.png lies in"),
    "dangling link": (unreadable, {}, "cannot read"),
    "two classes": (lambda root: shutil.rmtree(root / "cow"), {}, "2 classes"),
    "empty": (lambda root: [shutil.rmtree(p) for p in root.iterdir()], {}, "no images"),
    "gone": (shutil.rmtree, {}, "no folder or archive"),
    "size": (None, {"size": 0}, "size=0"),
    "vast size": (None, {"size": 1_000_000}, "size=1000000 must be 4096 or less"),
    "channels": (None, {"channels": 2}, "channels=2"),
    "fit": (None, {"fit": "pad"}, "fit=pad"),
    "fractions": (None, {"fractions": [0.5, 0.5]}, "three numbers"),
    "fractions below 0": (None, {"fractions": [1.5, -0.5, 0]}, "three numbers"),
    "no number": (None, {"fractions": [float("nan"), 0, 1]}, "three numbers"),
    "no lists": (None, {"splits": "/nowhere"}, "cannot read the list"),
}


@pytest.mark.parametrize("spoil, options, said", BAD.values(), ids=BAD)
def test_mistakes(tmp_path: Path, cache: Path, one_line, spoil, options, said) -> None:
    root = write(tmp_path / "a", "cat", "dog", "cow")
    if spoil:
        spoil(root)
    with pytest.raises(DataError) as caught:
        folder(root, **{"size": 4, **options})
    assert said in one_line(caught)
    if "splits" not in options and "fractions" not in options and said != "2 classes":
        assert not cache.exists() or not list(cache.iterdir())  # nothing half made


def test_more_mistakes(tmp_path: Path, one_line) -> None:
    with pytest.raises(DataError, match="dataset.root is missing"):
        folder()
    with pytest.raises(DataError) as caught:
        folder(write(tmp_path / "a", "train/cat", "test/cat", "val/dog"), size=4)
    assert "cat of a is in both" in one_line(caught)
    with pytest.raises(DataError) as caught:
        folder(write(tmp_path / "b", "train/cat", "test/dog"), size=4)
    assert "no folder val" in one_line(caught)
    (tmp_path / "b" / "train.txt").write_text("cat\nzebra\n")
    with pytest.raises(DataError) as caught:
        folder(tmp_path / "b", size=4, splits=tmp_path / "b")
    assert "lacks, such as 'cat'" in one_line(caught)
    text = tmp_path / "pictures.zip"
    text.write_text("no zip")
    with pytest.raises(DataError) as caught:
        folder(text)
    assert "no whole zip file" in one_line(caught)
    with zipfile.ZipFile(text, "w") as file:
        file.writestr("../cat/0.png", b"")
    with pytest.raises(DataError) as caught:
        folder(text)
    assert "points outside" in one_line(caught)
