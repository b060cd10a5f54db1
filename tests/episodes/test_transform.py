"""Prepared images: each step against its formula, on every split, and the hash as it was."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from metalearn.commands.building.config import compose
from metalearn.commands.building.meta_training import build
from metalearn.episodes import FewShotEpisodes, ImageTransform, Manifest, TransformedEpisodes
from metalearn.errors import UsageError
from tests.command import metalearn

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALL = (
    "dataset.classes=60",
    "tracker=disabled",
    "tracker.plots=false",
    "backbone.filters=4",
    "training.steps=2",
    "training.meta_batch=2",
    "evaluation.episodes=3",
    "evaluation.validation_episodes=2",
    "training.checkpoint_every=1",
)


def images(channels: int = 1, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.rand(5, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [4, 8, 13])
def test_resized(size: int) -> None:
    x = images()
    got = ImageTransform(size=size)(x)
    assert got.shape == (5, 1, size, size)
    for b in range(5):
        want = F.interpolate(x[b : b + 1], size=(size, size), mode="bilinear", antialias=True)
        assert torch.equal(got[b], want[0])


def test_halved_by_hand() -> None:
    """Antialiased: over four pixels with weights 1, 3, 3, 1, that bilinear alone would skip."""
    got = ImageTransform(size=4)(torch.arange(8.0).pow(2).expand(1, 1, 8, 8))
    weights = torch.tensor([1.0, 3, 3, 1]) / 8
    inner = [(weights * torch.arange(2 * i - 1, 2 * i + 3.0).pow(2)).sum() for i in (1, 2)]
    torch.testing.assert_close(got[0, 0, 2, 1:3], torch.stack(inner))


def test_grey_images_get_channels_and_are_normalised() -> None:
    x = images()
    got = ImageTransform(channels=3, mean=MEAN, std=STD)(x)
    assert got.shape == (5, 3, 6, 8) and got.is_contiguous()
    for c in range(3):
        torch.testing.assert_close(got[:, c], (x[:, 0] - MEAN[c]) / STD[c], atol=1e-6, rtol=0)
    torch.testing.assert_close(ImageTransform(std=[0.5])(images(3)), images(3) / 0.5)
    assert torch.equal(ImageTransform(channels=3)(images(3)), images(3))


def test_the_images_given_stay_as_they_are() -> None:
    x = images(3)
    ImageTransform(size=4, mean=[0.5], std=[0.5])(x)
    assert torch.equal(x, images(3))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_episodes_of_every_split(tiny, split: str) -> None:
    source = FewShotEpisodes(tiny, 3, 1, 2)
    how = ImageTransform(size=6, channels=3, mean=MEAN, std=STD)
    prepared = TransformedEpisodes(source, how)
    for got, given in zip(
        prepared.batch(split, [2, 7]).parts, source.batch(split, [2, 7]).parts, strict=True
    ):
        assert got.x.shape == (2, given.x.shape[1], 3, 6, 6)
        assert torch.equal(got.x[1], how(given.x[1])) and torch.equal(got.y, given.y)
    assert prepared.shape == source.shape
    assert Manifest(prepared, split, 9).hash == Manifest(source, split, 9).hash


def test_one_number_is_for_every_channel() -> None:
    x = torch.rand(2, 3, 4, 4)
    images = compose(["images.mean=.5", "images.std=[1]"])["images"]
    assert (images["mean"], images["std"]) == ([0.5], [1.0])
    one = ImageTransform(mean=0.5, std=0.25)
    assert torch.equal(one(x), ImageTransform(mean=[0.5], std=[0.25])(x))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"channels": 1}, "images.channels=1, but the images have 3; use images.channels=3"),
        ({"mean": [0.5, 0.5]}, "images.mean has 2 numbers, but the images have 3 channels"),
        ({"std": []}, "images.std has 0 numbers"),
        ({"mean": "grey"}, "images.mean=grey must be a number, or a list of one for each channel"),
        ({"mean": [0.5, None, 0.5]}, "images.mean=.* must be a number"),
        ({"std": float("inf")}, "images.std=inf must be a number"),
        ({"std": 0}, "images.std=.* must be above 0"),
        ({"size": 0}, "images.size=0 must be 1 or more"),
        ({"std": [0.5, 0.0, 0.5]}, "images.std=.* must be above 0"),
    ],
)
def test_what_is_refused(how: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ImageTransform(**how).shape((3, 8, 8))


def test_a_run_has_prepared_images_on_every_split(workplace: Path) -> None:
    _, built = build(compose([*SMALL, "images=imagenet", "images.size=16"]))
    sources = built.train, built.validation.source, built.test.source
    for source, split in zip(sources, ("train", "val", "test"), strict=True):
        x = source.batch(split, [0]).query.x
        assert x.shape[2:] == (3, 16, 16)
        # Black is -mean / std, in every channel its own.
        lowest = [-m / s for m, s in zip(MEAN, STD, strict=True)]
        torch.testing.assert_close(x.amin((0, 1, 3, 4)), torch.tensor(lowest), atol=1e-6, rtol=0)
    first = next(t for t in built.meta["init"].values() if t.ndim == 4)
    assert first.shape[1] == 3
    _, plain = build(compose([*SMALL]))
    assert built.test.hash == plain.test.hash


def test_runs_from_before_there_were_prepared_images_open(workplace: Path) -> None:
    assert metalearn("train", *SMALL, "run_dir=run").code == 0
    path = Path("run/config.yaml")
    held = yaml.safe_load(path.read_text())
    assert held.pop("images") == {"size": None, "channels": None, "mean": None, "std": None}
    path.write_text(yaml.safe_dump(held, sort_keys=False))
    measured = metalearn("evaluate", "run=run")
    assert measured.code == 0, measured.err
