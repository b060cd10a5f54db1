"""Features in the place of images: the same episodes, each image extracted once."""

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.backbones import Conv4
from metalearn.data import ImageDataset
from metalearn.episodes import FewShotEpisodes, Manifest
from metalearn.evaluation.features import (
    FeatureEpisodes,
    extract,
    standardised,
    unit_length,
    used,
)
from metalearn.functional import pure
from metalearn.types import Batch, Episodes
from tests.images import tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"), side=16)


def test_every_image_that_is_used_is_there_once(dataset: ImageDataset) -> None:
    sources = [FewShotEpisodes(dataset, 3, shots, 2, seed=1) for shots in (1, 3)]
    found = used(sources, "test", 7)
    expected = set()
    for source in sources:
        for index in range(7):
            ids = source.draw("test", index)
            for c, row in zip(
                ids.classes, np.concatenate([ids.support, ids.query], 1), strict=True
            ):
                expected |= {(int(c), int(e)) for e in row}
    assert list(zip(found.classes.tolist(), found.examples.tolist(), strict=True)) == sorted(
        expected
    )
    for place, (c, e) in enumerate(sorted(expected)):
        assert found.row[c, e] == place
    assert (found.row >= 0).sum() == len(expected)


def test_episodes_of_features_are_the_features_of_the_episodes_images(
    dataset: ImageDataset,
) -> None:
    source = FewShotEpisodes(dataset, 3, 2, 2, seed=4)
    module = Conv4(None, channels=1, filters=3, size=16, norm="frozen").double()
    net = pure(module)
    weights = {**net.params, **net.buffers}
    found = used([source], "test", 5)
    pixels = torch.from_numpy(dataset.images("test", found.classes, found.examples)).double() / 255
    features = extract(net, weights, pixels.split(4))
    manifest = Manifest(FeatureEpisodes(source, features, found.row, "test"), "test", 5)
    assert manifest.hash == Manifest(source, "test", 5).hash
    module.eval()
    for index in range(5):
        (images,), (seen,) = (
            [*Manifest(s, "test", 5).batches(5)] for s in (source, manifest.source)
        )
        for of_images, of_features in zip(images[:2], seen[:2], strict=True):
            assert torch.equal(of_images.y, of_features.y)
            with torch.no_grad():
                wanted = module(of_images.x[index].double())
            torch.testing.assert_close(of_features.x[index], wanted, atol=1e-6, rtol=0)


def test_changes_of_features_use_the_support_set_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    support = torch.randn(2, 6, 4, generator=rng, dtype=torch.float64) * 3 + 1
    query = torch.randn(2, 5, 4, generator=rng, dtype=torch.float64)
    labels = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)
    episodes = Episodes(Batch(support, labels[0]), Batch(query, labels[1]))
    changed = standardised(episodes)
    for task in range(2):
        s = support[task].numpy()
        mean, std = s.mean(0), np.sqrt(s.var(0) + 1e-5)
        np.testing.assert_allclose(changed.support.x[task].numpy(), (s - mean) / std, atol=1e-12)
        q = query[task].numpy()
        np.testing.assert_allclose(changed.query.x[task].numpy(), (q - mean) / std, atol=1e-12)
    one = unit_length(episodes)
    lengths = np.linalg.norm(query.numpy(), axis=-1, keepdims=True)
    np.testing.assert_allclose(one.query.x.numpy(), query.numpy() / lengths, atol=1e-12)


def test_dropout_is_off_while_features_are_taken() -> None:
    net = pure(nn.Sequential(nn.Flatten(), nn.Dropout(0.9)))
    x = torch.ones(2, 1, 3, 3)
    assert torch.equal(extract(net, {}, [x, x]), torch.ones(4, 9))
