"""Episodes gathered on a device are the host's, to the bit."""

import numpy as np
import pytest
import torch

from metalearn.commands.building import episodes as build
from metalearn.data import Classes, ImageDataset, Sinusoid
from metalearn.data.dataset import without_rotations
from metalearn.episodes import FewShotEpisodes, ImageTransform, Manifest, make_episodes
from metalearn.episodes.few_shot import smallest
from metalearn.episodes.gather import scaled
from metalearn.episodes.source import generator

CPU = torch.device("cpu")
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
devices = pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=gpu)])


def odd(tiny: ImageDataset) -> ImageDataset:
    """The store of `tiny` with classes out of order, and other turns in each split."""
    splits = {
        "train": without_rotations(np.array([11, 3, 7])),
        "val": Classes(np.array([9, 2, 9]), np.array([3, 1, 1])),
        "test": Classes(np.array([10, 10]), np.array([0, 3])),
    }
    return ImageDataset("odd", tiny.store, splits)


def same(
    dataset: ImageDataset, device: torch.device, split: str, shape: tuple[int, int, int]
) -> None:
    here = FewShotEpisodes(dataset, *shape, 4).batch(split, [5, 0, 10**9])
    there = FewShotEpisodes(dataset, *shape, 4, device).batch(split, [5, 0, 10**9])
    for got, want in zip(there.parts, here.parts, strict=True):
        assert got.x.device.type == got.y.device.type == device.type
        assert got.x.dtype == torch.float32 and got.y.dtype == torch.int64
        assert got.x.stride() == want.x.stride() and got.weight is None
        assert torch.equal(got.x.cpu(), want.x) and torch.equal(got.y.cpu(), want.y)


@devices
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 4), (2, 3, 2)])
def test_the_device_gives_what_the_host_gives(tiny, name, split, shape) -> None:
    same(tiny, torch.device(name), split, shape)
    same(odd(tiny), torch.device(name), split, shape)


@devices
def test_every_pixel_value_is_scaled_to_the_nearest(name) -> None:
    values = np.arange(256, dtype=np.uint8)
    got = scaled(torch.from_numpy(values).to(name)).cpu().numpy()
    assert np.array_equal(got, values.astype(np.float32) / np.float32(255))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
def test_the_host_does_not_wait_for_the_device(tiny) -> None:
    source = FewShotEpisodes(tiny, 3, 2, 2, device=torch.device("cuda"))
    source.batch("train", range(4))  # copies the images
    torch.cuda.set_sync_debug_mode("error")
    try:
        source.batch("train", range(4, 8))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_manifest_is_the_same(tiny) -> None:
    shape = {"ways": 3, "shots": 2, "queries": 2, "seed": 0}
    here, there = (make_episodes(tiny, **shape, device=device) for device in (None, CPU))
    assert Manifest(here, "test", 10).hash == Manifest(there, "test", 10).hash
    regression = make_episodes(Sinusoid(), **shape, device=CPU)
    assert regression.shape == (None, 2, 2)


@pytest.mark.parametrize("size", [1, 5, 300])
@pytest.mark.parametrize("count", [1, 4, 300])
def test_the_smallest_are_the_first_of_a_stable_order(size, count) -> None:
    rng = np.random.default_rng(size)
    shape = 3, size
    for values in (rng.random(shape), rng.integers(0, 4, shape).astype(float), np.zeros(shape)):
        want = np.argsort(values, axis=1, kind="stable")[:, :count]
        assert np.array_equal(smallest(values, count), want)


def test_a_draw_is_the_plain_one(tiny) -> None:
    """Class by class, each by a stable order of its own uniform numbers."""
    for index in range(200):
        ids = FewShotEpisodes(tiny, 4, 2, 3, seed=8).draw("test", index)
        rng = generator(tiny.digest, "test", 8, index)
        assert ids.classes.tolist() == np.argsort(rng.random(4), kind="stable").tolist()
        for size, *got in zip(tiny.examples_in("test", ids.classes), *ids[1:3], strict=True):
            want = np.argsort(rng.random(size), kind="stable")[:5]
            assert np.concatenate(got).tolist() == want.tolist()


def read(dataset, device: str) -> build.Data:
    shape = {"ways": 3, "shots": 1, "queries": 1}
    config = {"device": device, "episodes": shape, "outputs": 3, "training": {}, "seed": 0}
    uniform = {"sizes": None, "within_superclass": False}
    return build.Data(config, lambda: dataset, uniform, {}, ImageTransform())


@pytest.mark.parametrize(
    ("device", "fits", "held"),
    [("cpu", True, "cpu"), ("cuda", True, "cuda"), ("cpu", False, None), ("cuda", False, None)],
)
def test_a_run_keeps_the_images_ready_where_they_fit(tiny, monkeypatch, device, fits, held) -> None:
    monkeypatch.setattr(build, "torch_device", torch.device)
    monkeypatch.setattr(ImageDataset, "fits", lambda *_: fits)
    source = read(tiny, device).source("train")
    assert isinstance(source, FewShotEpisodes)
    assert source.device == (held and torch.device(held))


def test_regression_runs_know_no_device(monkeypatch) -> None:
    monkeypatch.setattr(build, "torch_device", torch.device)
    assert read(Sinusoid(), "cuda").source("train").shape == (None, 1, 1)
