"""Omniglot as it is: counts, splits, orientation, and what is said where it is missing."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, ImageDataset, omniglot
from metalearn.data.omniglot import CHARACTERS

LISTS = Path(omniglot.__globals__["__file__"]).parent / "splits"


def characters(split: str) -> list[str]:
    return (LISTS / f"omniglot_vinyals_{split}.txt").read_text().split()


def test_packaged_lists() -> None:
    lists = [characters(split) for split in ("train", "val", "test")]
    assert [len(names) for names in lists] == [1028, 172, 423]
    assert all(names == sorted(names) for names in lists)
    assert len(set().union(*lists)) == 1623


def test_packaged_lists_equal_the_published_ones(omniglot_archives: Path) -> None:
    for split in ("train", "val", "test"):
        published = (omniglot_archives / "splits" / "vinyals" / f"{split}.txt").read_text().split()
        ours = {f"{c}/rot{d:03d}" for c in characters(split) for d in (0, 90, 180, 270)}
        assert ours == set(published)


def test_store(real: ImageDataset) -> None:
    assert real.store.images.shape == (32460, 28, 28, 1)
    assert len(real.store.classes) == sum(CHARACTERS.values()) == 1623
    assert (np.diff(real.store.offsets) == 20).all()
    images = np.asarray(real.store.images)
    assert (images.reshape(len(images), -1).max(1) > 128).all()  # every drawing has ink
    assert 0.05 < images.mean() / 255 < 0.15  # and most of it is paper


def test_vinyals_split(real: ImageDataset) -> None:
    assert real.image_shape == (1, 28, 28)
    counts = {split: real.class_count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 4112, "val": 688, "test": 1692}
    assert "Korean/character05/rot090" in sum(
        (real.splits[s].names(real.store) for s in counts), start=[]
    )


def test_groups_are_the_alphabets(real: ImageDataset, omniglot_root: Path) -> None:
    assert real.groups is not None
    groups = dict(zip(real.store.classes, real.groups, strict=True))
    assert len(set(real.groups)) == 50
    assert groups["Korean/character05"] == "Korean"
    assert omniglot(omniglot_root, split="random").groups == real.groups


def test_random_split(omniglot_root: Path, real: ImageDataset) -> None:
    data = omniglot(omniglot_root, split="random")
    counts = [data.class_count(split) for split in ("train", "val", "test")]
    assert counts == [4400, 400, 1692]
    plain = omniglot(omniglot_root, split="random", rotations=False)
    assert [plain.class_count(s) for s in ("train", "val", "test")] == [1100, 100, 423]
    every = np.concatenate([plain.splits[s].index for s in ("train", "val", "test")])
    assert sorted(every) == list(range(1623))
    same = omniglot(omniglot_root, split="random").digest
    assert data.digest == same != omniglot(omniglot_root, split="random", seed=1).digest
    assert len({data.digest, plain.digest, real.digest}) == 3


def test_an_image_and_its_rotations(real: ImageDataset, omniglot_archives: Path) -> None:
    """Against the archive itself, read and turned by PIL."""
    names = real.splits["train"].names(real.store)
    first = next(i for i, name in enumerate(names) if name.startswith("Angelic/character01/"))
    with zipfile.ZipFile(omniglot_archives / "images_evaluation.zip") as file:
        members = [n for n in sorted(file.namelist()) if "/Angelic/character01/" in n]
        picture = Image.open(io.BytesIO(file.read(members[7]))).convert("L")
    small = picture.point(lambda v: 255 - v).resize((28, 28), Image.Resampling.LANCZOS)
    images = real.images("train", np.arange(first, first + 4), np.array(7))
    for turn in range(4):
        assert np.array_equal(images[turn, 0], np.asarray(small.rotate(90 * turn)))


def test_decoded_once(omniglot_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(omniglot.__globals__, "find_archive", None)  # would raise if called
    assert omniglot(omniglot_root).class_count("val") == 688


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": "lake"}, "vinyals or random"), ({"size": 0}, "1 to 105")],
)
def test_wrong_options(tmp_path: Path, options: dict, message: str, one_line) -> None:
    with pytest.raises(DataError, match=message) as caught:
        omniglot(tmp_path, **options)
    one_line(caught)


def test_another_archive_in_its_place(
    tiny_archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line
) -> None:
    data = tmp_path / "data" / "omniglot"
    data.mkdir(parents=True)
    monkeypatch.setenv("METALEARN_DATA", str(data.parent))
    for name in CHARACTERS:
        (data / f"{name}.zip").write_bytes(tiny_archive().read_bytes())
    with pytest.raises(DataError, match=r"holds 2 characters .*, not 964") as caught:
        omniglot(tmp_path / "cache")
    one_line(caught)
    assert not (tmp_path / "cache").exists()


def test_archives_that_are_given(
    omniglot_root: Path, omniglot_archives: Path, tmp_path: Path, one_line
) -> None:
    real = omniglot(omniglot_root)
    assert omniglot(tmp_path / "cache", omniglot_archives).digest == real.digest
    (tmp_path / "mine").mkdir()
    # Although the real images stand decoded in this cache.
    with pytest.raises(DataError, match=r"images_background\.zip") as caught:
        omniglot(omniglot_root, tmp_path / "mine")
    one_line(caught)
