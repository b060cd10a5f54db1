"""`evaluate` against a loop written by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn import Batch, Episodes, adapt, evaluate
from metalearn.algorithms import ANIL, MAML, ProtoNet
from metalearn.algorithms.losses import mean_squared
from metalearn.backbones import MLP
from metalearn.data import Sinusoid
from metalearn.engine import Engine
from metalearn.episodes import CurveEpisodes, FewShotEpisodes, Manifest
from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm
from metalearn.inner import lslr, sgd
from tests.images import tiny_dataset
from tests.tasks import network, task


def normed(statistics: str) -> nn.Module:
    norm = BatchNorm(6, statistics)  # type: ignore[arg-type]
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), norm, nn.ReLU(), nn.Linear(6, 3))


def algorithm(name: str):
    """Each way that an algorithm can make use of the support set."""
    if name == "protonet":
        return ProtoNet(network(lambda: MLP(16, None, (8,)), dtype=torch.float32))
    if name == "anil":
        module = network(lambda: MLP(16, 3, (8,)), dtype=torch.float32)
        return ANIL(module, steps=3, rule=lslr(0.3))
    if name in ("support", "transductive", "running"):
        return MAML(network(lambda: normed(name), dtype=torch.float32), 3, sgd(0.3))
    return MAML(network(lambda: MLP(16, 3, (8,)), dtype=torch.float32), 3, sgd(0.3, batch_size=3))


NAMES = ["maml", "anil", "protonet", "support", "transductive", "running"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    dataset = tiny_dataset(tmp_path_factory.mktemp("tiny"))
    return Manifest(FewShotEpisodes(dataset, 3, 2, 3), "test", 37)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_that_of_a_plain_loop(manifest, name) -> None:
    algo = algorithm(name)
    meta = algo.init()
    report = evaluate(algo, meta, manifest)
    assert set(report.by_step) == {"loss", "accuracy"}
    episodes = manifest.source.batch("test", range(37))
    for index in range(37):
        support, query, _ = task(episodes, index)
        for step in range(algo.steps + 1):
            fast = adapt(algo, meta, support, steps=step)
            logits = algo.predict(meta, fast, query.x)
            loss = float(F.cross_entropy(logits, query.y))
            right = float((logits.argmax(1) == query.y).float().mean())
            assert report.by_step["loss"][index, step] == pytest.approx(loss, rel=1e-5, abs=1e-6)
            assert report.by_step["accuracy"][index, step] == pytest.approx(right, abs=1e-6)
    assert report.by_step["loss"].shape == (37, algo.steps + 1)
    assert report.by_step["accuracy"].dtype == np.float64
    assert len(np.unique(report.losses)) == 37
    assert report.accuracy.mean == pytest.approx(report.by_step["accuracy"][:, -1].mean())
    assert report.score == report.accuracy.mean
    assert report.accuracy.count == 37


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batching", ["vmap", 5, 64, "4+im2col"])
def test_batching_changes_nothing(manifest, name, batching) -> None:
    algo = algorithm(name)
    want = evaluate(algo, algo.init(), manifest, engine=Engine("loop"))
    got = evaluate(algo, algo.init(), manifest, engine=Engine(batching))
    assert np.allclose(got.by_step["loss"], want.by_step["loss"], rtol=1e-4, atol=1e-5)
    assert np.abs(got.by_step["accuracy"] - want.by_step["accuracy"]).max() < 1e-6
    assert got.manifest_hash == want.manifest_hash


def test_a_manifest_one_batch_and_many_are_the_same_episodes(manifest) -> None:
    algo = algorithm("maml")
    meta = algo.init()
    whole = manifest.source.batch("test", range(37))
    want = evaluate(algo, meta, manifest)
    for episodes in (whole, [whole], manifest.batches(10), list(manifest.batches(1))):
        got = evaluate(algo, meta, episodes)
        assert np.array_equal(got.by_step["loss"], want.by_step["loss"])
        assert np.array_equal(got.by_step["accuracy"], want.by_step["accuracy"])
        assert got.manifest_hash is None
    assert want.manifest_hash == manifest.hash


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_steps_take_the_place_of_the_algorithms(manifest, steps) -> None:
    algo = algorithm("maml")
    own = evaluate(algo, algo.init(), manifest)
    got = evaluate(algo, algo.init(), manifest, steps=steps)
    assert got.by_step["loss"].shape == (37, steps + 1)
    common = min(steps, 3) + 1
    assert np.array_equal(got.by_step["loss"][:, :common], own.by_step["loss"][:, :common])
    assert np.array_equal(got.losses, got.by_step["loss"][:, steps])


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_stay_and_no_history_is_kept(manifest, name) -> None:
    algo = algorithm(name)
    meta = algo.init()
    before = {part: {n: t.clone() for n, t in meta[part].items()} for part in meta}
    for tensor in [*meta["init"].values(), *meta["hyper"].values()]:
        tensor.requires_grad_()
    report = evaluate(algo, meta, manifest)
    for part in meta:
        assert meta[part].keys() == before[part].keys()
        for n, tensor in meta[part].items():
            assert torch.equal(tensor, before[part][n])
            assert tensor.grad is None and tensor.grad_fn is None
    assert torch.is_grad_enabled()
    again = evaluate(algo, meta, manifest)
    assert np.array_equal(again.by_step["loss"], report.by_step["loss"])


class Watched:
    """A source that notes which episodes were asked for."""

    def __init__(self, source):
        self.source, self.asked = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def batch(self, split, indices):
        self.asked += [(split, index) for index in indices]
        return self.source.batch(split, indices)


def test_it_sees_its_own_split_once_and_no_other(manifest) -> None:
    watched = Watched(manifest.source)
    report = evaluate(algorithm("maml"), algorithm("maml").init(), Manifest(watched, "test", 37))
    assert watched.asked == [("test", index) for index in range(37)]
    assert report.manifest_hash == manifest.hash


@pytest.mark.parametrize("batching", ["loop", "vmap", 2])
def test_no_episodes(manifest, batching) -> None:
    algo = algorithm("maml")
    none = manifest.source.batch("test", range(2)).map(lambda t: t[:0])
    for episodes in ([], none, [none], Manifest(manifest.source, "test", 0)):
        with pytest.raises(UsageError) as caught:
            evaluate(algo, algo.init(), episodes, engine=Engine(batching))
        assert str(caught.value) == (
            "no episodes to evaluate; use evaluation.episodes of 1 or more"
        )


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_regression_has_a_loss_alone(batching) -> None:
    module = network(lambda: MLP(1, 1, (8,)), dtype=torch.float32)
    algo = MAML(module, 2, sgd(0.01), loss=mean_squared)
    manifest = Manifest(CurveEpisodes(Sinusoid(), 5, 4), "val", 9)
    report = evaluate(algo, algo.init(), manifest, engine=Engine(batching))
    assert set(report.by_step) == {"loss"}
    assert report.measure == "loss"
    assert report.score == -report.loss.mean < 0
    episodes = manifest.source.batch("val", range(9))
    for index in range(9):
        support, query, _ = task(episodes, index)
        outputs = algo.predict(algo.init(), adapt(algo, algo.init(), support), query.x)
        want = float(F.mse_loss(outputs, query.y))
        assert report.losses[index] == pytest.approx(want, rel=1e-4)
    with pytest.raises(KeyError):
        _ = report.accuracy


@pytest.mark.parametrize("name", ["maml", "protonet", "support", "transductive"])
@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_padding_counts_for_nothing(manifest, name, batching) -> None:
    algo = algorithm(name)
    if name == "maml":  # minibatches would take padding for examples of the set
        algo = MAML(algo.module, 3, sgd(0.3))
    episodes = manifest.source.batch("test", range(6))

    def padded(batch: Batch) -> Batch:
        noise = torch.full_like(batch.x[:, :2], 7.0)
        weight = torch.cat([torch.ones(batch.y.shape), torch.zeros(6, 2)], 1)
        return Batch(torch.cat([batch.x, noise], 1), F.pad(batch.y, (0, 2)), weight)

    want = evaluate(algo, algo.init(), episodes)
    longer = Episodes(padded(episodes.support), padded(episodes.query))
    got = evaluate(algo, algo.init(), longer, engine=Engine(batching))
    assert np.allclose(got.by_step["loss"], want.by_step["loss"], rtol=1e-4, atol=1e-5)
    assert np.abs(got.by_step["accuracy"] - want.by_step["accuracy"]).max() < 1e-6
