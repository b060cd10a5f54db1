"""No peak but Unroll's (and Truncated's, with `last`) grows with the activations of K steps."""

import functools
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.algorithms import MAML
from metalearn.backbones import Conv4
from metalearn.gradients import Adjoint, Checkpointed, FirstOrder, Implicit, Truncated, Unroll
from metalearn.gradients.peers import Learn2learn
from metalearn.inner import adapt, sgd
from metalearn.inner.loop import detached_gradient, inner_gradient
from tests.tasks import classification, network, on


class PeakBytes(TorchDispatchMode):
    """The most bytes that storages other than the `given` held at once."""

    def __init__(self, *given: torch.Tensor | None):
        super().__init__()
        self.live = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in given if tensor is not None}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return outputs

    def count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak(strategy, steps: int, tasks: int = 1, proximal: float = 1.0) -> int:
    net = network(lambda: Conv4(5, filters=8, size=28), dtype=torch.float32)
    algo = MAML(net, steps=steps, rule=sgd(0.01), proximal=proximal)
    episodes = classification(tasks, 5, 2, 10, (1, 28, 28), dtype=torch.float32)
    meta = algo.init()
    with PeakBytes(*tree_leaves((meta, episodes))) as counter:
        gradient = strategy(algo, meta, episodes)
    assert counter.live > 0
    del gradient
    return counter.peak


def weights() -> int:
    return sum(p.numel() * p.element_size() for p in Conv4(5, filters=8, size=28).parameters())


def test_the_counter_counts():
    with PeakBytes() as counter:
        a = torch.ones(1000)
        b = (a + 1).view(10, 100)
        del a
        c = b * 2
        assert counter.live == 8000
        del b, c
    assert counter.live == 0
    assert counter.peak == 8000


FEW, MANY = 3, 12


@functools.cache
def unrolled(batching: str) -> tuple[int, int]:
    return peak(on(Unroll(), batching), FEW), peak(on(Unroll(), batching), MANY)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_unroll_keeps_every_step(batching):
    few, many = unrolled(batching)
    assert (many - few) / (MANY - FEW) > 20 * weights()
    assert many > 2.5 * few


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize(
    "strategy, copies",
    [(Adjoint, 1), (Checkpointed, 1), (FirstOrder, 2), (Implicit, 0)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_peak_by_inner_steps(strategy, copies, batching):
    few, many = (peak(on(strategy(), batching), steps) for steps in (FEW, MANY))
    # What is left is at most a few copies of the weights a step.
    assert many - few <= (copies + 0.1) * (MANY - FEW) * weights()
    assert many < unrolled(batching)[1] / 2


@pytest.mark.parametrize("strategy, factor", [(Unroll, 1.02), (Adjoint, 0.75)])
def test_nothing_is_kept_beyond_what_backpropagation_needs(strategy, factor):
    """learn2learn calls `backward()`, which frees the graph as it goes, and records no more."""
    by_peer = peak(Learn2learn(), FEW, proximal=0.0)
    assert peak(on(strategy(), "loop"), FEW, proximal=0.0) < factor * by_peer


def test_inner_steps_that_nobody_differentiates_keep_nothing():
    net = network(lambda: Conv4(5, filters=8, size=28), dtype=torch.float32)
    algo = MAML(net, steps=2, rule=sgd(0.01))
    episodes = classification(1, 5, 2, 10, (1, 28, 28), dtype=torch.float32)
    meta, support = algo.init(), episodes.support.map(lambda t: t[0])
    peaks, weights = [], []
    for gradient in (inner_gradient, detached_gradient):
        with PeakBytes(*tree_leaves((meta, support))) as counter, torch.no_grad():
            weights.append(adapt(algo, meta, support, gradient=gradient))
        peaks.append(counter.peak)
    torch.testing.assert_close(weights[0], weights[1])
    assert peaks[1] < 0.75 * peaks[0]


def test_truncated_keeps_its_last_steps():
    one, two = (peak(Truncated(last), MANY) for last in (1, 2))
    few = peak(Truncated(1), FEW)
    step = (unrolled("loop")[1] - unrolled("loop")[0]) / (MANY - FEW)
    assert two - one > 0.5 * step
    assert one - few <= 2.1 * (MANY - FEW) * weights()


def test_a_loop_over_tasks_holds_one_task():
    one, four = (peak(on(Unroll(), "loop"), 2, tasks) for tasks in (1, 4))
    assert four < one + 4 * weights()
    assert peak(on(Unroll(), "vmap"), 2, 4) > 3 * peak(on(Unroll(), "vmap"), 2, 1)
