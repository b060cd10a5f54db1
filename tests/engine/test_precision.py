"""What each precision makes of the meta-gradient, against float64."""

import functools

import pytest
import torch
from torch import Tensor, nn

from metalearn.algorithms import MAML, Reptile
from metalearn.backbones import Conv4
from metalearn.gradients import (
    Adjoint,
    Checkpointed,
    Displacement,
    FirstOrder,
    Implicit,
    Truncated,
    Unroll,
)
from metalearn.inner import sgd
from metalearn.types import Episodes
from tests.tasks import apart, classification, distance, network, on

EXACT = [Adjoint, Unroll, Checkpointed]


def single(episodes: Episodes) -> Episodes:
    return episodes.map(lambda t: t.float() if t.is_floating_point() else t)


@functools.cache
def problem(steps: int, seed: int):
    """float32 and float64 versions of one problem, and the float64 gradient."""
    episodes = classification(2, 5, 1, 25, (1, 28, 28), seed)
    algos = [
        MAML(network(lambda: Conv4(5, filters=8, size=28), seed, dtype), steps, sgd(0.02))
        for dtype in (torch.float32, torch.float64)
    ]
    want, _ = on(Adjoint(), "loop")(algos[1], algos[1].init(), episodes)
    return algos[0], single(episodes), want["init"]


def cosine(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    a, b = (torch.cat([d[n].double().flatten() for n in want]) for d in (got, want))
    return float(a @ b / a.norm() / b.norm())


# The least of three seeds, loop and vmap: at 1 step 0.9939, 0.9777, 0.9965; at 5 steps 0.9917,
# 0.904, 0.862. What is lost are rounded values at the kinks of ReLU and pooling.
LEAST = {
    (1, "bf16"): 0.98,
    (1, "bf16-all"): 0.94,
    (1, "fp16"): 0.98,
    (5, "bf16"): 0.97,
    (5, "bf16-all"): 0.75,
    (5, "fp16"): 0.75,
}


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("strategy", EXACT)
@pytest.mark.parametrize(
    "steps, precision",
    [pytest.param(*case, marks=[pytest.mark.slow] * (case == (5, "fp16"))) for case in LEAST],
)
def test_narrow_precisions_point_the_same_way(steps, precision, strategy, batching):
    algo, episodes, want = problem(steps, 1)
    got, metrics = on(strategy(), batching, precision=precision)(algo, algo.init(), episodes)
    assert all(t.dtype == torch.float32 for t in [*got["init"].values(), *metrics.values()])
    assert LEAST[steps, precision] < cosine(got["init"], want) < 1 - 1e-6
    length = sum(float(t.norm() ** 2) for t in got["init"].values())
    assert length == pytest.approx(sum(float(t.norm() ** 2) for t in want.values()), rel=0.6)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("strategy", EXACT)
def test_single_precision(strategy, steps):
    algo, episodes, want = problem(steps, 1)
    for precision in ("fp32", "tf32"):  # the same on a CPU
        for batching in ("loop", "vmap"):
            got, _ = on(strategy(), batching, precision=precision)(algo, algo.init(), episodes)
            assert distance({n: t.double() for n, t in got["init"].items()}, want) < 1e-4
    default, _ = on(strategy(), "vmap")(algo, algo.init(), episodes)
    torch.testing.assert_close(got, default, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_double_precision_stays(precision):
    algo = MAML(network(lambda: Conv4(3, filters=4, size=16)), 2, sgd(0.1))
    meta, episodes = algo.init(), classification()
    want, _ = Unroll()(algo, meta, episodes)
    for strategy in EXACT:
        got, metrics = on(strategy(), precision=precision)(algo, meta, episodes)
        assert metrics["loss"].dtype == torch.float64
        assert apart(got, want) < 1e-12


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    "batching", ["loop", "vmap", "vmap+forward_over_reverse", "loop+forward_over_reverse"]
)
@pytest.mark.parametrize("strategy", [Adjoint, Unroll, Checkpointed, Implicit, Truncated])
def test_without_kinks_little_is_lost(strategy, batching):
    """Scales of the losses are undone exactly, so only rounding is left."""
    episodes = classification(shape=(4,))
    algo = MAML(network(smooth), 3, sgd(0.1), proximal=1.0)
    want, _ = on(strategy(), "loop")(algo, algo.init(), episodes)
    algo = MAML(network(smooth, dtype=torch.float32), 3, sgd(0.1), proximal=1.0)
    for precision, most in {"bf16": 2e-2, "bf16-all": 4e-2, "fp16": 5e-3}.items():
        strategic = on(strategy(), batching, precision=precision)
        got, _ = strategic(algo, algo.init(), single(episodes))
        off = distance({n: t.double() for n, t in got["init"].items()}, want["init"])
        assert 1e-5 < off < most, precision


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize(
    "strategy", [Adjoint, Unroll, Checkpointed, FirstOrder, Truncated, Implicit, Displacement]
)
def test_an_overflow_is_seen(strategy, batching):
    """1e5 is beyond float16, and far within bfloat16 and float32."""
    episodes = single(classification(shape=(4,)))
    large = episodes._replace(support=episodes.support._replace(x=episodes.support.x * 1e5))
    module = network(lambda: nn.Linear(4, 3), dtype=torch.float32)
    if strategy is Displacement:
        algo = Reptile(module, 2, sgd(1e-6))
    else:
        algo = MAML(module, 2, sgd(1e-6), proximal=1.0)
    for precision in ("fp32", "bf16-all", "fp16"):
        got, _ = on(strategy(), batching, precision=precision)(algo, algo.init(), large)
        finite = all(bool(t.isfinite().all()) for t in got["init"].values())
        assert finite == (precision != "fp16")
