"""Augmentation: each change against its plain definition, and that only the index decides it."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from metalearn.commands.building.config import compose
from metalearn.commands.building.meta_training import build
from metalearn.data import Sinusoid
from metalearn.episodes import CurveEpisodes, FewShotEpisodes, ImbalancedSizes
from metalearn.episodes.augmentation import NUMBERS, Augmentation, AugmentedEpisodes, augmented
from metalearn.errors import UsageError
from tests.images import tiny_dataset

STRONG = Augmentation(turn=True, crop=2, flip=0.5, jitter=0.4, erase=0.5)


def images(channels: int = 3, side: int = 8, count: int = 64) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def numbers(count: int = 64) -> torch.Tensor:
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(1))


def changed(x: torch.Tensor, **how) -> torch.Tensor:
    return Augmentation(**how)(x, torch.arange(len(x)) % 4, numbers(len(x)))


def test_nothing_asked_nothing_done():
    assert torch.equal(changed(images()), images())


def test_turns():
    x = images()
    got = changed(x, turn=True)
    for b in range(8):
        assert torch.equal(got[b], x[b].rot90(b % 4, (1, 2)))


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_windows(flip: float):
    x, u = images(side=6), numbers()
    got = changed(x, crop=2, flip=flip)
    flips = 0
    for b in range(len(x)):
        top, left = (u[b, :2] * 5).long().tolist()
        framed = torch.nn.functional.pad(x[b], (2, 2, 2, 2))
        want = framed[:, top : top + 6, left : left + 6]
        if u[b, 2] < flip:
            # The crop_and_flip of the mirrored image, whose frame is mirrored with it.
            want = framed.flip(2)[:, top : top + 6, 4 - left : 10 - left]
            flips += 1
        assert torch.equal(got[b], want)
    assert (20 < flips < 44) == (flip > 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions(channels: int):
    x, u = images(channels), numbers()
    got = changed(x, jitter=0.4)
    for b in range(len(x)):
        brightness, contrast, saturation = (0.6 + 0.8 * u[b, 3:6]).tolist()
        want = TF.adjust_contrast(TF.adjust_brightness(x[b], brightness), contrast)
        if channels == 3:
            want = TF.adjust_saturation(want, saturation)
        torch.testing.assert_close(got[b], want, atol=2e-3, rtol=0)  # torchvision's 0.2989


def test_erased():
    x = images(side=16) + 0.1
    holes = (changed(x, erase=0.5) == 0).all(1)
    shares = holes.flatten(1).float().mean(1)
    assert ((shares == 0) == (numbers()[:, 6] >= 0.5)).all()
    some = shares[shares > 0]
    assert (some > 0.005).all() and (some < 0.4).all()
    for hole in holes[shares > 0]:  # a rectangle
        assert hole.sum() == hole.any(0).sum() * hole.any(1).sum()


@pytest.fixture
def source(tmp_path) -> FewShotEpisodes:
    return FewShotEpisodes(tiny_dataset(tmp_path), 3, 2, 3)


def test_only_the_index_decides(source):
    strong = AugmentedEpisodes(source, STRONG, STRONG)
    together = strong.batch("train", range(6))
    for i in (5, 0, 3):
        alone = strong.batch("train", [i])
        for part, whole in zip(alone.parts, together.parts, strict=True):
            assert torch.equal(part.x[0], whole.x[i]) and torch.equal(part.y[0], whole.y[i])
    other = AugmentedEpisodes(FewShotEpisodes(source.dataset, 3, 2, 3, seed=1), STRONG, STRONG)
    assert not torch.equal(other.batch("train", [0]).support.x, together.support.x[:1])


def test_support_and_query_may_differ(source):
    plain = source.batch("train", range(3))
    half = AugmentedEpisodes(source, STRONG, None).batch("train", range(3))
    assert torch.equal(half.query.x, plain.query.x)
    assert not torch.equal(half.support.x, plain.support.x)
    # An option does not change what another draws.
    both = AugmentedEpisodes(source, STRONG, STRONG).batch("train", range(3))
    assert torch.equal(both.support.x, half.support.x)


def test_a_class_turns_as_one(source):
    turn = Augmentation(turn=True)
    got = AugmentedEpisodes(source, turn, turn).batch("train", range(20))
    plain = source.batch("train", range(20))
    seen = set()
    for t in range(20):
        for label in range(3):
            turns = set()
            for part, before in zip(got.parts, plain.parts, strict=True):
                for b in np.flatnonzero(part.y[t] == label):
                    turns.add(
                        next(
                            k
                            for k in range(4)
                            if torch.equal(before.x[t, b].rot90(k, (1, 2)), part.x[t, b])
                        )
                    )
            assert len(turns) == 1
            seen |= turns
    assert seen == {0, 1, 2, 3}


def test_the_sources_images_stay_as_they_are(source):
    x = images()
    for how in ({"turn": True}, {"crop": 2}, {"jitter": 0.4}, {"erase": 1.0}):
        assert not torch.equal(changed(x, **how), x)
        assert torch.equal(x, images())


@pytest.mark.parametrize("augmentation", ["standard", "rotations", "randaugment"])
def test_only_training_images_are_changed(augmentation: str, workplace):
    shape = ["dataset.classes=60", "episodes.queries=5", "backbone.filters=4", "device=cpu"]
    plain, built = (
        build(compose([*shape, f"augmentation={choice}"]))[1] for choice in ("none", augmentation)
    )
    manifests = [(b.validation, b.test) for b in (plain, built)]
    for want, got in zip(*manifests, strict=True):
        for before, after in zip(
            next(want.batches(3)).parts, next(got.batches(3)).parts, strict=True
        ):
            assert torch.equal(before.x, after.x)
    want, got = (b.train.batch("train", range(3)) for b in (plain, built))
    for before, after in zip(want.parts, got.parts, strict=True):
        assert not torch.equal(before.x, after.x) and torch.equal(before.y, after.y)


def test_what_is_refused(source):
    assert augmented(source, None, None) is source
    with pytest.raises(UsageError, match="augmentation is for images"):
        augmented(CurveEpisodes(Sinusoid(), 5, 4), STRONG, None)
    for wrong in ({"flip": 1.5}, {"crop": -1}, {"jitter": -0.1}, {"erase": 2.0}):
        with pytest.raises(UsageError, match="must be 0"):
            Augmentation(**wrong)


def test_padding_and_the_batch_do_not_show_in_a_task_of_drawn_size(tmp_path) -> None:
    sizes = ImbalancedSizes(1, 4, "random")
    plain = FewShotEpisodes(tiny_dataset(tmp_path), 3, 1, 2, sizes=sizes)
    source = AugmentedEpisodes(plain, STRONG, STRONG)
    together = source.batch("train", [4, 0, 7])
    assert len({int(w.sum()) for w in together.support.weight}) > 1
    for row, index in enumerate([4, 0, 7]):
        alone = source.batch("train", [index])
        for got, want in zip(together.parts, alone.parts, strict=True):
            real = int(want.weight.sum())
            assert torch.equal(got.x[row, :real], want.x[0, :real])
