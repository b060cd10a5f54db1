"""RandAugment: every operation as torchvision does it image by image, and who draws what."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from metalearn.episodes import FewShotEpisodes
from metalearn.episodes.augmentation import NUMBERS, Augmentation, AugmentedEpisodes, augmented
from metalearn.episodes.randaugment import OPERATIONS, apply_operations, randaugment
from metalearn.episodes.source import generator
from metalearn.errors import UsageError
from tests.images import tiny_dataset

THEIRS = RandAugment()
NAMES = list(THEIRS._AUGMENTATION_SPACE)
TWO = Augmentation(randaugment=2)
GREY_OR_BLUR = ("color", "contrast", "sharpness")


def images(channels: int = 3, side: int = 12, count: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    return torch.randint(256, shape, generator=rng, dtype=torch.uint8).float() / 255


def reference(x: torch.Tensor, number: int, sign: int, magnitude: int) -> torch.Tensor:
    """torchvision's operation `number` of one image."""
    strengths, signed = THEIRS._AUGMENTATION_SPACE[NAMES[number]]
    found = strengths(31, *x.shape[-2:])
    strength = 0.0 if found is None else float(found[magnitude]) * (sign if signed else 1)
    nearest = InterpolationMode.NEAREST
    return THEIRS._apply_image_or_video_transform(x, NAMES[number], strength, nearest, {})


def test_the_operations_are_torchvisions() -> None:
    assert [name.replace("_", "") for name in OPERATIONS] == [name.lower() for name in NAMES]


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", range(14), ids=OPERATIONS)
def test_an_operation_is_torchvisions(number: int, channels: int, magnitude: int) -> None:
    x = images(channels)
    before = x.clone()
    signs = np.where(np.arange(len(x)) % 2, -1, 1)
    got = apply_operations(x, np.full(len(x), number), signs, magnitude)
    assert torch.equal(x, before)
    want = torch.stack(
        [
            reference(image, number, int(sign), magnitude)
            for image, sign in zip(x, signs, strict=True)
        ]
    )
    # Blends are rounded otherwise; torchvision's weight of red is 0.2989.
    close = 1e-4 if OPERATIONS[number] in GREY_OR_BLUR else 1e-6
    torch.testing.assert_close(got, want, atol=close, rtol=0)
    # At 0 most do nothing; grey images have no color.
    if magnitude and number not in (0, *((7,) if channels == 1 else ())):
        assert not torch.equal(got, x)


def test_images_that_are_not_square() -> None:
    x = images()[:, :, :7]
    for number in range(14):
        got = apply_operations(x, np.full(len(x), number), np.ones(len(x), np.int64), 9)
        want = torch.stack([reference(image, number, 1, 9) for image in x])
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_every_image_draws_its_own_operations() -> None:
    x = images(count=60)
    draws = np.random.default_rng(0).random((2, 60, 2), np.float32)
    got = randaugment(x, 9, draws)
    seen = set()
    for b in range(60):
        want = x[b]
        for u, v in draws[:, b]:
            number = int(u * 14)
            seen.add(number)
            want = reference(want, number, -1 if v < 0.5 else 1, 9)
        # Rounding of a blend may turn a step of a quantised operation after it.
        assert ((got[b] - want).abs() < 1e-4).float().mean() > 0.98
        assert torch.equal(randaugment(x[b : b + 1], 9, draws[:, b : b + 1])[0], got[b])
    assert len(seen) == 14


@pytest.fixture
def source(tmp_path) -> FewShotEpisodes:
    return FewShotEpisodes(tiny_dataset(tmp_path, side=8), 3, 2, 3)


def test_only_the_index_decides(source) -> None:
    made = AugmentedEpisodes(source, TWO, TWO)
    together = made.batch("train", [5, 9])
    for place, index in enumerate((5, 9)):
        for part, whole in zip(made.batch("train", [index]).parts, together.parts, strict=True):
            assert torch.equal(part.x[0], whole.x[place])
    assert not torch.equal(together.support.x, source.batch("train", [5, 9]).support.x)


def test_its_numbers_come_after_the_others(source) -> None:
    """As many as they are, no other change sees them, and the first round is the same."""
    plain = Augmentation(crop=2, flip=0.5)
    with_one = Augmentation(crop=2, flip=0.5, randaugment=1)
    one = AugmentedEpisodes(source, with_one, plain).batch("train", [4])
    two = AugmentedEpisodes(source, with_one, TWO).batch("train", [4])
    old = AugmentedEpisodes(source, plain, plain).batch("train", [4])
    assert torch.equal(one.support.x, two.support.x)
    assert torch.equal(one.query.x, old.query.x)

    rng = generator(f"{source.dataset.digest}/augmented", "train", 0, 4)
    rng.random(3)
    numbers = torch.from_numpy(rng.random((15, NUMBERS), np.float32))
    draws = rng.random((1, 15, 2), np.float32)
    x = source.batch("train", [4]).support.x[0]
    want = with_one(x, torch.zeros(6, dtype=torch.int64), numbers[:6], draws[:, :6])
    assert torch.equal(one.support.x[0], want)


def test_what_is_refused(source) -> None:
    for wrong, told in (
        ({"randaugment": -1}, "randaugment=-1 must be 0 or more"),
        ({"magnitude": 31}, "magnitude=31 must be 0 to 30"),
    ):
        with pytest.raises(UsageError, match=told):
            Augmentation(**wrong)
    # Two channels: nobody's grey.
    store = source.dataset.store
    pairs = np.repeat(store.images, 2, axis=3)
    object.__setattr__(store, "images", pairs)
    with pytest.raises(UsageError, match="1 or 3 channels, not 2; use randaugment=0"):
        augmented(source, TWO, None)
