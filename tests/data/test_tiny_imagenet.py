"""Tiny-ImageNet: the official layout, one box an image, and what is wrong with either told."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, data_folder, tiny_imagenet
from metalearn.data.dataset import SPLITS
from metalearn.data.store import open_store, verify
from tests.inputs.tiny import FIRST, LISTS, jpeg, made, table, without


def test_the_official_layout_and_its_boxes(tmp_path: Path) -> None:
    data = tiny_imagenet(tmp_path, made(tmp_path / "tiny-imagenet-200.zip"), size=32)
    assert [data.class_count(split) for split in SPLITS] == [61, 17, 45]
    assert data.class_names("test") == LISTS["test"] and data.image_shape == (3, 32, 32)
    assert data.groups is not None and len(set(data.groups)) == 31
    # The tenth image is the tenth, not the one after the first by its name.
    here, images = np.zeros(3, int), np.array([0, 1, 10])
    reds = data.images("test", here, images)[:, 0].mean((1, 2))
    np.testing.assert_allclose(reds, [40, 200, 40], atol=3)
    found = data.beside("boxes", "test", here, images)
    # The last row and column are counted in, and images are half as wide as they were.
    np.testing.assert_array_equal(found, [[0, 1, 5, 1.5], [0.5, 1, 5.5, 1.5], [5, 1, 10, 1.5]])
    assert found.dtype == np.float32
    (folder,) = tmp_path.glob("tiny_imagenet-v1-32px-*")
    verify(folder)
    boxes = np.load(folder / "boxes.npy")
    np.save(folder / "boxes.npy", boxes + 1)
    with pytest.raises(DataError, match="its digest does not match its content"):
        verify(folder)
    np.save(folder / "boxes.npy", boxes[1:])
    with pytest.raises(DataError, match="is damaged"):
        open_store(folder)


BAD = {
    "no box": (table(b"%s_0.JPEG\t0\t0\t9\t9" % FIRST.encode()), "_1.JPEG .* has no box in its"),
    "no area": (table(b"a.JPEG\t9\t0\t8\t9"), "the box 9 0 8 9, which has no area; mend it"),
    "beyond": (table(b"a.JPEG\t0\t0\t64\t9"), "0 0 64 9, beyond its image of 64x64"),
    "three numbers": (table(b"a.JPEG\t1\t2\t3"), "no box of four whole numbers in line 1"),
    "words": (table(b"a.JPEG\t1\t2\t3\tnan"), "no box of four whole numbers in line 1"),
    "two boxes": (table(b"a.JPEG\t1\t2\t3\t4\na.JPEG\t1\t2\t3\t5"), "gives a.JPEG two boxes"),
    "no text": (table(b"\xff\x80"), "_boxes.txt in .* is no text"),
    "no table": (without(f"{FIRST}_boxes"), f"no boxes of class {FIRST} .*dataset.boxes=false"),
    "no images": (without(FIRST, "JPEG"), f"no images of 1 of the 123 .* train/{FIRST}/images"),
    "other images": (
        lambda files: files.update(
            {f"tiny-imagenet-200/train/{FIRST}/images/{FIRST}_0.JPEG": jpeg(9, 32)}
        ),
        "is 32x32 pixels, not 64x64",
    ),
}


@pytest.mark.parametrize("given", BAD)
def test_it_is_refused_in_one_line(given: str, tmp_path: Path, one_line) -> None:
    change, said = BAD[given]
    archive = made(tmp_path / "tiny.zip", change)
    with pytest.raises(DataError, match=said) as caught:
        tiny_imagenet(tmp_path, archive)
    assert one_line(caught)
    assert not list(tmp_path.glob("tiny_imagenet-*"))


def test_images_alone(tmp_path: Path) -> None:
    archive = made(tmp_path / "tiny.zip", without("_boxes.txt"))
    data = tiny_imagenet(tmp_path, archive, boxes=False)
    with pytest.raises(DataError, match="tiny_imagenet has no boxes beside its images"):
        data.beside("boxes", "test", np.array([0]), np.array([0]))


def test_the_real_archive(tmp_path: Path) -> None:
    place = data_folder()
    if place is None or not (place / "tiny_imagenet" / "tiny_imagenet.zip").is_file():
        pytest.skip("no tiny_imagenet/tiny_imagenet.zip in METALEARN_DATA or ../shared/data")
    with zipfile.ZipFile(place / "tiny_imagenet" / "tiny_imagenet.zip") as archive:
        part = tmp_path / "part.zip"
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as out:
            # The first two images of each class: a third of a second, not 15.
            for name in archive.namelist():
                if name.endswith(("_boxes.txt", "_0.JPEG", "_1.JPEG")):
                    out.writestr(name, archive.read(name))
    data = tiny_imagenet(tmp_path, part)
    assert data.class_names("test")[0] == "n01443537" and data.sizes["test"].tolist() == [2] * 45
    goldfish = data.beside("boxes", "test", np.array([0, 0]), np.array([0, 1]))
    np.testing.assert_array_equal(goldfish, [[0, 10, 64, 59], [14, 2, 55, 50]])
    with zipfile.ZipFile(part) as archive:
        file = io.BytesIO(archive.read("train/n01443537/images/n01443537_1.JPEG"))
    found = data.images("test", np.array(0), np.array(1)).transpose(1, 2, 0)
    np.testing.assert_array_equal(found, np.asarray(Image.open(file).convert("RGB")))
