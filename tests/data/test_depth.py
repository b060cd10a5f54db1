"""A ramp in every mode that Pillow reads is the ramp again, or one line says why not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn.data import DataError, folder
from metalearn.data.files import Folder
from metalearn.data.image_files import pixels, read_image, survey

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
DEEP = RAMP.astype(np.uint16)
GREY = Image.fromarray(RAMP)
COLOUR = GREY.convert("RGB")

SAME = {
    "16.tif": Image.fromarray(DEEP * 257),
    "16 big-endian.tif": Image.frombytes("I;16B", (32, 32), (DEEP * 257).astype(">u2").tobytes()),
    "16.png": Image.fromarray(DEEP * 257),
    "12 of 16.tif": Image.fromarray(DEEP * 16),
    "12 of 16 big-endian.tif": Image.frombytes(
        "I;16B", (32, 32), (DEEP * 16).astype(">u2").tobytes()
    ),
    "10 of 16.png": Image.fromarray(DEEP * 4),
    "8 of 16.png": Image.fromarray(DEEP),
    "32.tif": Image.fromarray(DEEP.astype(np.int32) * 257),
    "float to 1.tif": Image.fromarray(RAMP.astype(np.float32) / 255),
    "float to 255.tif": Image.fromarray(RAMP.astype(np.float32)),
    "float to 65535.tif": Image.fromarray(RAMP.astype(np.float32) * 257),
    "cmyk.tif": COLOUR.convert("CMYK"),
    "palette.png": GREY.convert("P"),
    "alpha.png": GREY.convert("LA"),
    "grey.jp2": GREY,
    "grey.tga": GREY,
}


@pytest.mark.parametrize("name", SAME)
def test_the_ramp_is_the_ramp(tmp_path: Path, name: str) -> None:
    SAME[name].save(tmp_path / name)
    for channels in (1, 3):
        got = pixels(read_image(Folder(tmp_path), name), 32, channels, "stretch")
        expected = np.repeat(RAMP[..., None], channels, 2)
        assert np.abs(got.astype(int) - expected).max() <= 1, name
        assert got.shape == (32, 32, channels)


def test_lab_is_its_lightness(tmp_path: Path) -> None:
    middle = Image.new("L", (32, 32), 128)
    Image.merge("LAB", [GREY, middle, middle]).save(tmp_path / "a.tif")
    got = pixels(read_image(Folder(tmp_path), "a.tif"), 32, 1, "stretch")[0, :, 0].astype(int)
    assert (np.diff(got) > 0).all() and got[0] == 0
    # CIE 1976: a lightness of 50.2 of 100 has 18.6% of the light of white, 119 in sRGB.
    assert abs(got[16] - 119) <= 2


def test_white_is_zero(tmp_path: Path) -> None:
    Image.fromarray(DEEP * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    got = pixels(read_image(Folder(tmp_path), "a.tif"), 32, 1, "stretch")[..., 0]
    assert np.abs(got.astype(int) - (255 - RAMP)).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32) - 1000,  # signed, as a CT's
        RAMP.astype(np.int32) * 70_000,
        RAMP.astype(np.float32) / 127.5 - 1,
        RAMP.astype(np.float32) / 85,
    ],
    ids=["signed", "32 bits", "float -1 to 1", "float to 3"],
)
def test_values_that_say_nothing_of_white_are_one_line(tmp_path: Path, one_line, values) -> None:
    for label in "abc":
        (tmp_path / label).mkdir()
        Image.fromarray(values).save(tmp_path / label / "0.tif")
    with pytest.raises(DataError) as caught:
        folder(tmp_path, size=8, cache=tmp_path / "cache")
    assert "of which nothing says what is black and white" in one_line(caught)
    assert "a/0.tif in" in str(caught.value)


def test_white_is_that_of_all_images_together(tmp_path: Path) -> None:
    """A dark image of 12 bits among bright ones stays dark."""
    for number, label in enumerate("abc"):
        (tmp_path / "r" / label).mkdir(parents=True)
        Image.fromarray(DEEP * (1 if number else 16)).save(tmp_path / "r" / label / "0.tif")
    files = Folder(tmp_path / "r")
    assert survey(files, files.names) == (True, 4095, 3, 0)
    data = folder(tmp_path / "r", size=32, cache=tmp_path / "cache")
    bright, dark = (data.store.images[i, ..., 0].astype(int) for i in (0, 1))
    assert np.abs(bright - RAMP).max() <= 1 and np.abs(dark - RAMP // 16).max() <= 1
    assert "3 images have more than 8 bits, of which 4095 is taken for white" in data.notes


def test_one_colour_image_makes_three_channels(tmp_path: Path) -> None:
    for label in "abc":
        (tmp_path / "r" / label).mkdir(parents=True)
        for i in range(3):
            GREY.save(tmp_path / "r" / label / f"{i}.png")
    cache = tmp_path / "cache"
    assert folder(tmp_path / "r", size=8, cache=cache).image_shape[0] == 1
    Image.new("RGB", (8, 8), "red").save(tmp_path / "r" / "c" / "2.png")
    assert folder(tmp_path / "r", size=8, cache=cache).image_shape[0] == 3
