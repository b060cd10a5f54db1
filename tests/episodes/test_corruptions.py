"""The common corruptions against their definitions, by PIL, scipy and plain loops; what is drawn
against its distribution; an episode alone against the same among others."""

import importlib.util
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image

from metalearn.data import glyphs
from metalearn.episodes import FewShotEpisodes
from metalearn.episodes.corruptions import CORRUPTIONS, Corruption, blur, corrupted, digital
from metalearn.episodes.corruptions.chance import normal, poisson, uniform
from metalearn.episodes.corruptions.constants import constants
from metalearn.episodes.corruptions.weather import plasma
from metalearn.errors import UsageError
from scripts.corruptions import rows
from tests.command import FAST, metalearn

SEEDS = torch.arange(4) + 7


def pictures(count: int = 4, side: int = 32) -> torch.Tensor:
    """Smooth colours with edges, of 8 bits, `[B, 3, side, side]`."""
    x = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(x, (side, side), mode="bilinear")
    x[:, :, side // 4 : side // 2, side // 3 : side // 2] = 0.9
    return (x.clamp(0, 1) * 255).round() / 255


X = pictures()


def eight_bits(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_its_image_s_alone_and_grows(name: str) -> None:
    far = []
    for severity in (1, 5):
        how = Corruption(name, severity)
        whole = how(X, SEEDS)
        assert torch.isfinite(whole).all() and whole.min() >= 0 and whole.max() <= 1
        torch.testing.assert_close(how(X[2:3], SEEDS[2:3]), whole[2:3], rtol=0, atol=1e-6)
        far.append((whole - X).abs().mean())
    assert far[0] > 0 and (name == "elastic_transform" or far[0] < far[1])
    grey, small = X[:, :1], X[:1, :, :10, :9]
    assert how(grey, SEEDS).shape == grey.shape and how(small, SEEDS[:1]).shape == small.shape


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_jpeg_and_pixels_are_those_of_pil(severity: int) -> None:
    quality, share = (constants(n, severity, 32) for n in ("jpeg_compression", "pixelate"))
    for number in range(2):
        image, file = Image.fromarray(eight_bits(X[number])), io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        want = np.asarray(Image.open(file)).astype(float)
        got = eight_bits(Corruption("jpeg_compression", severity)(X, SEEDS)[number]).astype(float)
        assert np.abs(got - want).mean() < 1.5 and np.quantile(np.abs(got - want), 0.99) <= 12
        few = int(32 * share)
        box = Image.Resampling.BOX
        want = np.asarray(image.resize((few, few), box).resize((32, 32), box)).astype(float)
        got = eight_bits(Corruption("pixelate", severity)(X, SEEDS)[number]).astype(float)
        assert np.abs(got - want).max() <= 1


def test_blurs_are_those_of_scipy() -> None:
    x = X[0].double()
    for sigma, truncate, mode, theirs in ((0.7, 4.0, "replicate", "nearest"),
                                          (1.9, 3.0, "symmetric", "reflect")):  # fmt: skip
        want = scipy.ndimage.gaussian_filter(
            x.numpy(), (0, sigma, sigma), mode=theirs, truncate=truncate
        )
        got = blur.smoothed(x[None], sigma, truncate, mode)[0]
        np.testing.assert_allclose(got, want, atol=1e-12)
    for factor in (1.06, 1.25):
        inside = math.ceil(32 / factor)
        top = (32 - inside) // 2
        part = x.numpy()[:, top : top + inside, top : top + inside]
        large = scipy.ndimage.zoom(part, (1, factor, factor), order=1)
        trim = (large.shape[1] - 32) // 2
        want = large[:, trim : trim + 32, trim : trim + 32]
        np.testing.assert_allclose(blur.zoomed(x[None], factor)[0], want, atol=1e-6)
    kernel = blur.disk(3, 0.1)
    assert kernel.shape[0] in (7, 9) and kernel.sum() == pytest.approx(1)
    want = scipy.ndimage.convolve(x[0].numpy(), kernel.numpy(), mode="mirror")
    got = blur.defocus_blur(x[None], (3, 0.1), SEEDS[:1])[0, 0]
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("sizes", ["cifar", "imagenet"])
def test_zooms_are_those_of_the_published_code(sizes) -> None:
    ends = {"cifar": (1.06, 1.11, 1.16, 1.21, 1.26), "imagenet": (1.11, 1.16, 1.21, 1.26, 1.31)}
    steps = {"cifar": [0.01] * 5, "imagenet": [0.01, 0.01, 0.02, 0.02, 0.03]}[sizes]
    for severity, (end, step) in enumerate(zip(ends[sizes], steps, strict=True), 1):
        count = len(np.arange(1, end, step))  # with its end, where that is rounded up
        zooms = 1 + step * np.arange(count)
        want = (X + sum(blur.zoomed(X, float(zoom)) for zoom in zooms)) / (len(zooms) + 1)
        got = Corruption("zoom_blur", severity, sizes=sizes)(X, SEEDS)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_motion_is_a_sum_of_shifted_images() -> None:
    x, angles = X.double(), torch.tensor([-45.0, 10.0, -100.0, 45.0])
    radius, sigma = 6, 2.0
    weights = np.exp(-(np.arange(13.0) ** 2) / (2 * sigma**2))
    for number, angle in enumerate(angles.tolist()):
        want = np.zeros((3, 32, 32))
        for i, weight in enumerate(weights / weights.sum()):
            down = -math.ceil(i * math.sin(math.radians(angle)) - 0.5)
            right = -math.ceil(i * math.cos(math.radians(angle)) - 0.5)
            rows = np.clip(np.arange(32) - down, 0, 31)
            columns = np.clip(np.arange(32) - right, 0, 31)
            want += weight * x[number].numpy()[:, rows][:, :, columns]
        np.testing.assert_allclose(blur.moved(x, radius, sigma, angles)[number], want, atol=1e-12)


def test_glass_follows_the_loop() -> None:
    sigma, far, times = how = (0.4, 2, 2)
    got = blur.glass_blur(X.double(), how, SEEDS)
    for number in (0, 3):
        start = scipy.ndimage.gaussian_filter(
            X[number].double().numpy(), (0, sigma, sigma), mode="nearest"
        )
        x = np.floor(start.clip(0, 1) * 255) / 255
        for turn in range(times):
            steps = uniform(SEEDS, turn, 2, 32, 32)[number].numpy()
            steps = np.floor(steps * 2 * far).astype(int) - far
            for h in range(32 - far, far, -1):
                for w in range(32 - far, far, -1):
                    down, right = h + steps[0, h, w], w + steps[1, h, w]
                    x[:, h, w] = x[:, min(down, 31), min(right, 31)]
        want = scipy.ndimage.gaussian_filter(x, (0, sigma, sigma), mode="nearest")
        np.testing.assert_allclose(got[number], want.clip(0, 1), atol=1e-9)


def test_light_moves_the_value_and_the_mean() -> None:
    from colorsys import hsv_to_rgb, rgb_to_hsv

    got = Corruption("brightness", 5)(X, SEEDS)
    for at in ((0, 3, 4), (1, 20, 9), (2, 9, 12)):
        h, s, v = rgb_to_hsv(*X[at[0], :, at[1], at[2]].tolist())
        want = hsv_to_rgb(h, s, min(v + 0.3, 1))
        assert got[at[0], :, at[1], at[2]].tolist() == pytest.approx(want, abs=1e-5)
    got = Corruption("contrast", 4)(X, SEEDS)
    mean = X.mean((2, 3), keepdim=True)
    torch.testing.assert_close(got, mean + 0.3 * (X - mean))


def test_what_is_drawn_has_its_distribution() -> None:
    seeds = torch.arange(40)
    assert abs(normal(seeds, 0, 500).mean()) < 0.03
    assert normal(seeds, 0, 500).std() == pytest.approx(1, abs=0.02)
    for rate in (0.02, 0.7, 3.0, 25.0, 500.0):
        got = poisson(seeds, 0, torch.full((40, 50), rate))
        want = scipy.stats.poisson.ppf(uniform(seeds, 0, 50).numpy(), rate)
        np.testing.assert_array_equal(got, want)
    noisy = Corruption("impulse_noise", 5)(torch.full((40, 3, 16, 16), 0.5), seeds)
    assert (noisy == 0).float().mean() == pytest.approx(0.035, abs=0.006)
    assert (noisy == 1).float().mean() == pytest.approx(0.035, abs=0.006)
    mist = plasma(seeds, 0, 32, 2.0)
    assert mist.shape == (40, 32, 32) and mist.amax((1, 2)).eq(1).all()
    still = (mist[:, 1:] - mist[:, :-1]).abs().mean()
    assert still < 0.1 < plasma(seeds, 0, 32, 1.0).diff(dim=1).abs().mean()


def test_an_elastic_image_without_strength_is_an_affine_one() -> None:
    straight = digital.elastic_transform(X.double(), (0, 0, 0), SEEDS)
    torch.testing.assert_close(straight, X.double())
    moved = digital.elastic_transform(X.double(), (0, 0, 0.08), SEEDS)
    assert 0 < (moved - X).abs().mean() < 0.2


def test_episodes_are_corrupted_by_what_they_hold() -> None:
    source = FewShotEpisodes(glyphs(classes=24, size=16), 2, 1, 2)
    for on in ("query", "both"):
        how = Corruption("gaussian_noise", 2, on=on)
        made, plain = corrupted(source, how), source.batch("train", [4, 2])
        got, alone = made.batch("train", [4, 2]), made.batch("train", [2])
        assert torch.equal(got.query.x[1], alone.query.x[0])
        assert torch.equal(got.support.x, plain.support.x) == (on == "query")
        assert not torch.equal(got.query.x, plain.query.x)
        assert made.fingerprint("train", 4) == source.fingerprint("train", 4)
    other = corrupted(source, Corruption("gaussian_noise", 2, seed=1)).batch("train", [2])
    assert not torch.equal(other.query.x, alone.query.x)
    assert corrupted(source, None) is source


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "fogg"}, "corruption.name=fogg is not known (did you mean fog?)"),
        ({"name": "fog", "severity": 6}, "corruption.severity=6 must be 1, 2, 3, 4 or 5"),
        ({"name": "fog", "severity": 2.0}, "corruption.severity=2.0 must be"),
        ({"name": "fog", "on": "support"}, "corruption.on=support is not known; use query or both"),
    ],
)
def test_mistakes_are_one_line(given: dict, told: str) -> None:
    with pytest.raises(UsageError) as error:
        Corruption(**given)
    assert str(error.value).startswith(told[:30])
    assert "\n" not in str(error.value)


SMALL = [*FAST, "episodes.ways=2", "episodes.queries=2", "evaluation.episodes=3"]


def test_a_run_is_evaluated_on_corrupted_queries(workplace: Path) -> None:
    metalearn("train", "algorithm=protonet", *SMALL, "run_dir=run")
    for name, severity, told in (("fog", 4, "fog, severity 4, of the queries"), ("null", 6, None)):
        asked = [f"corruption.name={name}", f"corruption.severity={severity}"]
        assert metalearn("evaluate", "run=run", *asked).code == 0
        made = max((workplace / "run" / "evaluations").glob("*/result.json"), key=os.path.getmtime)
        assert json.loads(made.read_text(encoding="utf-8"))["corruption"] == told
    wrong = metalearn("evaluate", "run=run", "corruption.name=fog", "corruption.severity=6")
    assert wrong.mistake == "corruption.severity=6 must be 1, 2, 3, 4 or 5"
    curves = metalearn("train", "dataset=sinusoid", "loss=mean_squared", "corruption.name=fog")
    assert curves.mistake == "corruption is of images, and these episodes have none; leave it out"


def test_they_are_those_of_the_published_package() -> None:
    python = os.environ.get("IMAGECORRUPTIONS_PYTHON")
    if python is None and importlib.util.find_spec("imagecorruptions") is None:
        pytest.skip("imagecorruptions is not installed; IMAGECORRUPTIONS_PYTHON may name a python")
    for row in rows(python or sys.executable, 12):
        assert row["error"] < (1.1 if "pixels" in row["compared"] else 0.2), row
