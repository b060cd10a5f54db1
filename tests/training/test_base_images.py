"""What a batch holds depends on (data set, held-out split, seed, step) alone."""

import numpy as np
import pytest
import torch

from metalearn.data import glyphs
from metalearn.episodes import Augmentation, ImageTransform
from metalearn.errors import UsageError
from metalearn.training.base_images import BaseImages, ImageReader
from metalearn.training.held_out_split import hold_out
from metalearn.training.mixing import Mixing


@pytest.fixture
def data(workplace):
    return glyphs(size=12, classes=40, drawings=8)


def source(data, seed: int = 0, device: torch.device | None = None, **more) -> BaseImages:
    reader = ImageReader(data, more.pop("transform", ImageTransform()), device)
    return BaseImages(reader, hold_out(data, 0.25, 0).train, 30, seed, **more)


def found(images: BaseImages, steps: range, workers: int = 0) -> list:
    return list(images.batches(steps, workers))


def equal(a, b) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.other, b.other)


def test_an_epoch_has_every_image_at_most_once_and_as_the_store_has_it(data) -> None:
    images = source(data)
    subset, count = images.subset, len(images.subset)
    assert images.epoch == count // 30
    rows = data.images("train", subset.classes, subset.examples)
    known = {row.tobytes(): label for row, label in zip(rows, subset.classes, strict=True)}
    assert len(known) == count
    seen = set()
    for batch in found(images, range(images.epoch)):
        for x, label in zip(batch.x, batch.y, strict=True):
            key = (x * 255).round().byte().numpy().tobytes()
            assert known[key] == label and key not in seen
            seen.add(key)
    assert len(seen) == 30 * images.epoch


STEPS = range(0, 20)


def test_the_same_from_any_step_in_any_thread_on_a_device(data) -> None:
    how = {
        "augmentation": Augmentation(crop=2, flip=0.5, erase=0.5, turn=True, randaugment=1),
        "mixing": Mixing(mixup=0.4, cutmix=1.0),
        "transform": ImageTransform(size=16, channels=3, mean=[0.5], std=[0.2]),
    }
    whole = found(source(data, **how), STEPS)
    assert whole[0].x.shape == (30, 3, 16, 16)
    for again in (
        found(source(data, **how), STEPS, workers=2),
        found(source(data, device=torch.device("cpu"), **how), STEPS),
        sum((found(source(data, **how), range(s, s + 1)) for s in STEPS), []),
    ):
        assert all(map(equal, whole, again)) and len(again) == len(whole)
        assert [b.share for b in again] == [b.share for b in whole]
    assert not equal(whole[0], found(source(data, seed=1, **how), STEPS)[0])
    assert not equal(whole[0], whole[source(data).epoch])  # the next epoch has another order


def test_what_is_asked_for_does_not_shift_the_rest(data) -> None:
    plain = found(source(data), range(3))
    flipped = found(source(data, augmentation=Augmentation(flip=1.0)), range(3))
    mixed = found(source(data, mixing=Mixing(mixup=0.5)), range(3))
    for one, two, three in zip(plain, flipped, mixed, strict=True):
        assert torch.equal(two.x, one.x.flip(3)) and torch.equal(two.y, one.y)
        assert torch.equal(three.y, one.y)
        j = [int(np.flatnonzero((one.y == other).numpy())[0]) for other in three.other]
        if len(set(one.y.tolist())) == len(one.y):
            torch.testing.assert_close(three.x, torch.lerp(one.x[j], one.x, three.share))


def test_a_batch_larger_than_all_images_is_refused(data) -> None:
    subset = hold_out(data, 0.25, 0).train
    with pytest.raises(UsageError, match=f"but {len(subset)} images are there to train on"):
        BaseImages(ImageReader(data, ImageTransform()), subset, len(subset) + 1)
