"""Scenes: boxes and masks are where the ink is, and an episode follows from its numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.data import glyph_scenes, glyphs
from metalearn.data.scenes import Scene
from metalearn.episodes import DenseEpisodes, FewShotEpisodes, Manifest, make_episodes
from metalearn.episodes.manifest import read_manifest, write_manifest
from metalearn.errors import DataError, UsageError


@pytest.fixture(scope="module")
def scenes(data_cache: Path):
    made = {"size": 32, "glyph": 16, "objects": 3, "classes": 24, "drawings": 6}
    return glyph_scenes(data_cache, **made)


def source(scenes, task: str = "detection", **shape) -> DenseEpisodes:
    asked = {"ways": 2, "shots": 2, "queries": 2, "seed": 0, **shape}
    return make_episodes(scenes, task=task, **asked)


def equal(a, b) -> None:
    for x, y in zip(a[:2], b[:2], strict=True):
        torch.testing.assert_close(x.x, y.x, rtol=0, atol=0)
        torch.testing.assert_close(x.y, y.y, rtol=0, atol=0)


def test_a_picture_by_hand():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    images[0, 0, 1:3, 0:3] = 200
    images[1, 0, 3, 3] = 255
    places = np.zeros((2, 1, 2))
    places[1] = 0.999  # the last corner that a tile may have
    made = Scene(size=12, objects=1).picture(images, places, shown=1)
    np.testing.assert_allclose(made.boxes, [[0, 1 / 12, 3 / 12, 3 / 12]])
    assert made.pixels[0, 11, 11] == 255 and made.pixels[0, 1, 2] == 200
    # Two pixels around the ink of what is shown, and none of the other.
    want = np.zeros((12, 12))
    want[:5, :5] = 1
    np.testing.assert_array_equal(made.mask, want)


def test_every_class_has_k_boxes_that_hold_its_ink(scenes):
    given = source(scenes, shots=3).batch("test", range(4))
    x, y = given.support.x, given.support.y
    assert x.shape == (4, 2, 1, 32, 32) and y["boxes"].shape == (4, 2, 3, 4)
    for task in range(4):
        there = y["valid"][task] > 0
        assert y["labels"][task][there].bincount().tolist() == [3, 3]
        for picture, boxes in zip(x[task, :, 0], y["boxes"][task], strict=True):
            for x0, y0, x1, y1 in (boxes * 32).round().int().tolist():
                assert picture[y0:y1, x0:x1].max() > 0.4  # ink in every box


def test_masks_and_boxes_are_of_the_same_pictures(scenes):
    boxed, masked = (source(scenes, t).batch("val", [3]) for t in ("detection", "segmentation"))
    torch.testing.assert_close(boxed.query.x, masked.query.x, rtol=0, atol=0)
    mask, boxes = masked.query.y["mask"][0], boxed.query.y["boxes"][0]
    for picture, labels in enumerate(boxed.query.y["labels"][0]):
        (rows, columns) = torch.nonzero(mask[picture] == labels[0] + 1).T
        x0, y0, x1, y1 = (boxes[picture, 0] * 32).tolist()
        assert rows.min() <= y0 and rows.max() >= y1 - 1  # two pixels more
        assert columns.min() <= x0 and columns.max() >= x1 - 1


def test_an_episode_does_not_depend_on_its_batch_and_a_manifest_repeats_it(scenes, tmp_path):
    made = source(scenes)
    together = made.batch("test", [0, 1, 2])
    alone = made.batch("test", [2])
    equal(alone, together.map(lambda t: t[2:]))
    listed = Manifest(made, "test", 3)
    write_manifest(listed, tmp_path / "episodes.json")
    read = read_manifest(tmp_path / "episodes.json", scenes)
    assert read.hash == listed.hash
    equal(DenseEpisodes(read.source, "detection").batch("test", [0, 1, 2]), together)
    other = replace(scenes, scene=Scene(32, objects=2))
    with pytest.raises(DataError, match="is refused"):
        read_manifest(tmp_path / "episodes.json", other)


def test_what_cannot_be_asked_is_one_line(scenes, data_cache):
    plain = glyphs(data_cache, 16, 24, 6)
    with pytest.raises(UsageError, match="glyphs has no boxes"):
        source(plain)
    with pytest.raises(UsageError, match="glyph_scenes has pictures of several classes"):
        source(scenes, "classification")
    with pytest.raises(UsageError, match="dataset.distractors=1 are of classes beside the 3"):
        source(scenes, ways=3).check("val")
    with pytest.raises(UsageError, match="task=boxes is not known; use detection or segment"):
        DenseEpisodes(FewShotEpisodes(plain, 2, 1, 1), "boxes")
    with pytest.raises(DataError, match="1 to 64 objects"):
        Scene(objects=0)
