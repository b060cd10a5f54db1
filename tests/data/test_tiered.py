"""tieredImageNet: its packaged lists, and either layout that users have."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, tiered_imagenet
from metalearn.data.class_splits import PACKAGED, listed
from metalearn.data.store import build_store
from metalearn.data.tiered_imagenet import decode, with_splits

SPLITS = ("train", "val", "test")
# Of the sorted names, a line each: another value means another split.
HASHES = {"train": "815386e653f6b4c8", "val": "4ee5b13fa317a860", "test": "d168485c0b36dae9"}
SMALL = {"train": ["n00000001", "n00000003"], "val": ["n00000002"], "test": ["n00000005"]}


def test_the_packaged_lists() -> None:
    found = listed("tiered_imagenet")
    assert [len(names) for names in found.values()] == [351, 97, 160]
    assert len(set().union(*found.values())) == 608
    for split, names in found.items():
        assert names == sorted(names)
        assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == HASHES[split]


def test_no_superclass_is_in_two_splits() -> None:
    lines = (PACKAGED / "tiered_imagenet_superclasses.txt").read_text().splitlines()
    groups = {name: set(below.split()) for name, _, below in (x.partition(":") for x in lines)}
    assert len(groups) == 34 and sum(map(len, groups.values())) == 608
    counts = []
    for names in listed("tiered_imagenet").values():
        inside = [group for group in groups.values() if group <= set(names)]
        assert set().union(*inside) == set(names)
        counts.append(len(inside))
    assert counts == [20, 6, 8]
    assert {"n02099601", "n02099712"} <= groups["sporting_dog"]  # golden, Labrador retriever
    assert "n07753592" in groups["solid"]  # banana


def test_the_official_classes(tmp_path: Path) -> None:
    names = sorted(set().union(*listed("tiered_imagenet").values()))
    images = (np.full((2, 4, 4, 3), c % 256, np.uint8) for c in range(608))
    build_store(tmp_path / "tiered_imagenet-v1-4px", "tiered_imagenet", names, images)
    data = tiered_imagenet(tmp_path, size=4)
    assert [data.class_count(split) for split in SPLITS] == [351, 97, 160]
    assert data.groups is not None
    in_split = [{data.groups[i] for i in data.splits[split].index} for split in SPLITS]
    assert [len(groups) for groups in in_split] == [20, 6, 8]
    assert data.groups[names.index("n01440764")] == "aquatic_vertebrate"  # tench


def write(root: Path, *labels: str, count: int = 2) -> Path:
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True)
        name = label.split("/")[-1]
        for i in range(count):
            Image.new("RGB", (20, 10), (40 * number, 50 * i, 0)).save(
                root / label / f"{name}_{i}.JPEG"
            )
    return root


def test_either_layout_gives_the_same_store(tmp_path: Path) -> None:
    plain = [f"n0000000{i}" for i in range(6)]
    imagenet = write(tmp_path / "imagenet", *plain)
    for split, names in SMALL.items():
        for name in names:
            shutil.copytree(imagenet / name, tmp_path / "tiered" / split / name)
    shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "tiered")
    shutil.make_archive(str(tmp_path / "tarred"), "gztar", tmp_path, "imagenet")
    stores = [
        decode(tmp_path / place, tmp_path / "stores" / place, 8, SMALL)
        for place in ("imagenet", "tiered", "zipped.zip", "tarred.tar.gz")
    ]
    assert len({store.digest for store in stores}) == 1
    assert stores[0].classes == ("n00000001", "n00000002", "n00000003", "n00000005")
    assert stores[0].images.shape == (8, 8, 8, 3)
    assert abs(int(stores[0].images[6, 4, 4, 0]) - 200) < 5  # JPEG


def test_classes_with_other_names(tmp_path: Path) -> None:
    root = write(tmp_path / "t", "train/cat", "train/dog", "valid/cow", "test/fox")
    store = decode(root, tmp_path / "store", 8, SMALL)
    assert store.classes == ("test/fox", "train/cat", "train/dog", "val/cow")
    data = with_splits(store)
    assert data.groups is None
    assert [data.splits[s].names(store) for s in SPLITS] == [
        ["train/cat", "train/dog"],
        ["val/cow"],
        ["test/fox"],
    ]


BAD = {
    "ImageNet's root": (["train/n00000001", "val/n00000001"], "1/1/0 classes .*, not 2/1/1"),
    "too few": (["train/cat", "val/cow", "test/fox"], "1/1/1 classes in train, val and test"),
    "shared": (["train/cat", "train/dog", "val/cow", "test/dog"], "class dog in two of"),
    "lacking": (["n00000001", "n00000002"], "lacks 2 of the 4 classes .* such as n00000003"),
    "no images": ([], "lacks 4 of the 4"),
}


@pytest.mark.parametrize("labels, said", BAD.values(), ids=BAD)
def test_other_images(tmp_path: Path, one_line, labels, said) -> None:
    (tmp_path / "t").mkdir()
    write(tmp_path / "t", *labels)
    with pytest.raises(DataError, match=said) as caught:
        decode(tmp_path / "t", tmp_path / "store", 8, SMALL)
    assert str(tmp_path / "t") in one_line(caught)
    assert not (tmp_path / "store").exists()


def test_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line) -> None:
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path))
    with pytest.raises(DataError, match="tiered_imagenet cannot be downloaded freely") as caught:
        tiered_imagenet(tmp_path)
    one_line(caught)
    with pytest.raises(DataError, match="correct dataset.archive"):
        tiered_imagenet(tmp_path, tmp_path / "nowhere")
    with pytest.raises(DataError, match="size must be 1"):
        tiered_imagenet(tmp_path, size=0)
    (tmp_path / "tiered_imagenet").mkdir()  # found, and refused
    with pytest.raises(DataError, match="lacks 608 of the 608"):
        tiered_imagenet(tmp_path)
