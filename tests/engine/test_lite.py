"""LITE: few support examples keep their history, and the mean over all draws is the gradient."""

import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from metalearn import Batch, Episodes, algorithms
from metalearn.backbones import Conv4
from metalearn.engine import Engine, lite
from metalearn.errors import UsageError
from metalearn.functional.norms import BatchNorm
from metalearn.gradients import Adjoint, Displacement, FirstOrder, Implicit, Unroll
from metalearn.gradients.peers import Learn2learn
from metalearn.inner import lslr, sgd
from tests.command import FAST, metalearn
from tests.gradients.test_memory import PeakBytes
from tests.tasks import apart, classification, generator, network

METHODS = {
    "protonet": (Unroll(), lambda net: algorithms.ProtoNet(net, learn_temperature=True)),
    "r2d2": (Adjoint(), lambda net: algorithms.R2D2(net, regularisation=0.7)),
    "anil": (Adjoint(), lambda net: algorithms.ANIL(net, 2, lslr(0.1))),
    "anil, first order": (FirstOrder(), lambda net: algorithms.ANIL(net, 2, lslr(0.1))),
    "transductive": (Unroll(), lambda net: algorithms.SoftKMeans(net, 2)),
}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def padded(batch: Batch, more: int, g: torch.Generator) -> Batch:
    """With loud noise of weight 0 among the examples, not behind them."""
    size = batch.x.shape[1]
    places = torch.randperm(size + more, generator=g)
    x = torch.cat([batch.x, 50 * torch.randn(1, more, 4, generator=g, dtype=batch.x.dtype)], 1)
    y = torch.cat([batch.y, torch.zeros(1, more).long()], 1)
    weight = (torch.arange(size + more) < size).double().unsqueeze(0)
    return Batch(x[:, places], y[:, places], weight[:, places])


@pytest.mark.parametrize(
    "name, with_padding", [("protonet", False), *((name, True) for name in METHODS)]
)
def test_the_mean_over_all_draws_is_the_gradient(name, with_padding, monkeypatch) -> None:
    strategy, build = METHODS[name]
    algo, g, kept = build(network(net)), generator(3), 2
    support, query, _ = classification(1, 3, 2, 5, (4,))
    if with_padding:
        support, query = padded(support, 3, g), padded(query, 2, g)
    meta, tasks = algo.init(), Episodes(support, query)
    want, measured = Engine("loop")(strategy, algo, meta, tasks)
    weight = torch.ones(1, 6) if support.weight is None else support.weight
    found = []
    for subset in combinations(weight[0].nonzero().flatten().tolist(), kept):
        # Padding is what the numbers would choose first.
        bits = 2 + (weight[0] > 0).long()
        bits[[*subset]] = 1
        bits[weight[0] == 0] = 0
        monkeypatch.setattr(lite, "random_bits", lambda seed, shape, bits=bits: bits)
        gradient, metrics = Engine("loop", lite=kept)(strategy, algo, meta, tasks)
        torch.testing.assert_close(metrics, measured, rtol=1e-12, atol=0)
        found.append(gradient)
    assert len(found) == 15
    mean = {p: {n: sum(f[p][n] for f in found) / 15 for n in meta[p]} for p in want}
    assert apart(mean, want) < 1e-12
    if name != "anil, first order":  # which sees the support set in the inner steps alone
        assert apart(found[0], want) > 1e-3


def test_every_example_is_drawn_as_often_and_padding_never() -> None:
    support = Batch(torch.zeros(7, 1), torch.zeros(7).long(), torch.tensor([1.0, 0, 1, 1, 0, 1, 1]))
    counts, together = torch.zeros(7), torch.zeros(7, 7)
    for seed in range(600):
        rows, scale = lite.drawn(torch.tensor(seed), support, 2)
        assert float(scale) == 2.5
        counts[rows] += 1
        together[rows[0], rows[1]] += 1
    assert counts[support.weight == 0].tolist() == [0, 0]
    assert (counts[support.weight > 0] / 600 - 0.4).abs().max() < 0.06
    pairs = (together + together.T)[support.weight > 0][:, support.weight > 0]
    assert (pairs[~torch.eye(5, dtype=torch.bool)] / 600 - 0.1).abs().max() < 0.04
    rows, scale = lite.drawn(torch.tensor(5), support, 6)  # more than there are
    assert sorted(rows[:5].tolist()) == [0, 2, 3, 5, 6] and float(scale) == 1


def test_a_task_draws_the_same_whatever_it_is_padded_to() -> None:
    x, y = torch.zeros(9, 1), torch.zeros(9).long()
    for seed in map(torch.tensor, range(20)):
        short = lite.drawn(seed, Batch(x[:6], y[:6]), 3)
        long = lite.drawn(seed, Batch(x, y, (torch.arange(9) < 6).double()), 3)
        torch.testing.assert_close(long, short, rtol=0, atol=0)


def gradient(batching, kept, algo, meta, episodes, seed=5, strategy=None):
    torch.manual_seed(seed)
    return Engine(batching, lite=kept)(strategy or Unroll(), algo, meta, episodes)


def of_images() -> nn.Module:
    return Conv4(None, filters=4, size=16, norm="group")


@pytest.mark.parametrize(
    "batching, build, shape",
    [
        ("vmap", of_images, (1, 16, 16)),
        (2, of_images, (1, 16, 16)),
        pytest.param("vmap+compile", net, (4,), marks=pytest.mark.slow),
        pytest.param("loop+compile", net, (4,), marks=pytest.mark.slow),
    ],
)
def test_however_it_runs_a_seed_draws_the_same(batching, build, shape) -> None:
    algo, episodes = algorithms.R2D2(network(build)), classification(shape=shape)
    meta = algo.init()
    want, measured = gradient("loop", 2, algo, meta, episodes)
    got, metrics = gradient(batching, 2, algo, meta, episodes)
    assert apart(got, want) < 1e-10
    torch.testing.assert_close(metrics, measured, rtol=1e-10, atol=0)
    assert apart(gradient("loop", 2, algo, meta, episodes, seed=6)[0], want) > 1e-3
    whole, _ = Engine("loop")(Unroll(), algo, meta, episodes)
    assert apart(gradient("loop", 100, algo, meta, episodes)[0], whole) < 1e-12


def test_two_steps_draw_other_examples_and_narrow_types_are_taken() -> None:
    algo = algorithms.ANIL(network(net, dtype=torch.float32), 2)
    episodes = classification(shape=(4,), dtype=torch.float32)
    engine, meta = Engine("loop", lite=2), algo.init()
    torch.manual_seed(0)
    found = [engine(Adjoint(), algo, meta, episodes)[0] for _ in range(2)]
    assert apart(*found) > 1e-3
    for precision, close in (("bf16", 3e-2), ("fp16", 5e-3)):
        torch.manual_seed(0)
        narrow = Engine("loop", precision, lite=2)(Adjoint(), algo, meta, episodes)[0]
        assert apart(narrow, found[0]) < close


def peak(shots: int, kept: int | None) -> int:
    net = network(lambda: Conv4(None, filters=8, size=16, norm="group"), dtype=torch.float32)
    algo, episodes = algorithms.ProtoNet(net), classification(1, 2, shots, 4, dtype=torch.float32)
    meta = algo.init()
    with PeakBytes(*tree_leaves((meta, episodes))) as counter:
        given = Engine("loop", lite=kept)(Unroll(), algo, meta, episodes)
    del given
    return counter.peak


def test_memory_does_not_follow_the_support_set() -> None:
    image = 16 * 16 * 4  # bytes; its activations take far more
    assert peak(60, 4) - peak(20, 4) < 80 * 2 * image
    assert peak(60, None) - peak(20, None) > 80 * 8 * image
    assert peak(60, 4) < 0.2 * peak(60, None)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), BatchNorm(8, "support"), nn.Linear(8, 3))


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))


ONCE = "is for a method whose network sees the support set once, and "
ALONE = "needs features of an example that do not depend on the others; use backbone.norm=group"
REFUSED = {
    "maml": (Unroll(), lambda: algorithms.MAML(net(), 1), f"{ONCE}MAML does not; use algorithm="),
    "proto_maml": (Unroll(), lambda: algorithms.ProtoMAML(net(), 1), f"{ONCE}ProtoMAML does not"),
    "minibatches": (
        Unroll(),
        lambda: algorithms.ANIL(net(), 1, sgd(0.1, batch_size=2)),
        f"{ONCE}MAML does not",
    ),
    "batch norm": (Unroll(), lambda: algorithms.ProtoNet(with_norm()), ALONE),
    "dropout": (Unroll(), lambda: algorithms.R2D2(with_dropout()), ALONE),
    "implicit": (
        Implicit(),
        lambda: algorithms.ANIL(net(), 1, proximal=1.0, kinds=("implicit",)),
        "needs a gradient through the whole task, not Implicit; use gradient=unroll",
    ),
    "displacement": (Displacement(), lambda: algorithms.Reptile(net(), 1), "not Displacement"),
    "a peer": (Learn2learn(), lambda: algorithms.ANIL(net(), 1), "not Learn2learn"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_where_it_would_be_wrong_it_is_refused(what: str) -> None:
    strategy, build, told = REFUSED[what]
    algo = build()
    episodes = classification(shape=(4,), dtype=torch.float32)
    with pytest.raises(UsageError) as error:
        Engine(lite=2)(strategy, algo, algo.init(), episodes)
    line = str(error.value)
    assert line.startswith("lite=2 ") and told in line and "\n" not in line


def test_dropout_that_is_off_is_no_obstacle() -> None:
    algo, episodes = algorithms.R2D2(with_dropout().double()), classification(shape=(4,))
    with algo.net.evaluating():
        Engine("loop", lite=2)(Unroll(), algo, algo.init(), episodes)


@pytest.mark.parametrize("kept", [0, -1, 1.5, "some", True])
def test_a_number_of_examples_that_is_none(kept) -> None:
    with pytest.raises(UsageError, match=rf"^lite={kept} must be "):
        Engine(lite=kept)


RUN = ("algorithm=protonet", "episodes.shots=3", "batching=loop", "lite=4", "run_dir=run")


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(workplace: Path) -> None:
    args = [*FAST, *RUN, "backbone.norm=group", "training.steps=2", "training.checkpoint_every=1"]
    outcome = metalearn("train", *args, "training.keep=3")
    assert outcome.code == 0, outcome.err
    before = Path("run/weights.safetensors").read_bytes()
    _, second = sorted(Path("run/checkpoints").iterdir())
    shutil.rmtree(second)
    Path("run/result.json").unlink()
    Path("run/weights.safetensors").unlink()
    outcome = metalearn("train", *args, "training.keep=3")
    assert outcome.code == 0, outcome.err
    assert "step 1" in outcome.out
    assert Path("run/weights.safetensors").read_bytes() == before


def test_the_command_line_refuses_before_anything_runs(workplace: Path) -> None:
    line = metalearn("train", *FAST, "algorithm=maml", "lite=4", "run_dir=run").mistake
    assert line.startswith(f"lite=4 {ONCE}MAML does not")
    line = metalearn("train", *FAST, *RUN, "backbone.norm=transductive").mistake
    assert line.startswith(f"lite=4 {ALONE}")
    line = metalearn("train", *FAST, *RUN, "lite=some").mistake
    assert line == "lite=some must be a whole number, 1 or more"
    assert not Path("run").exists()
