"""Adjoint's peak does not grow with the activations of the inner steps; Unroll's does."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.algorithms import MAML
from metalearn.backbones import Conv4
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import sgd
from tests.tasks import classification, network


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


def peak(strategy, steps: int, tasks: int = 1) -> int:
    net = network(lambda: Conv4(5, filters=8, size=28), dtype=torch.float32)
    algo = MAML(net, steps=steps, rule=sgd(0.01))
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


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_peak_by_inner_steps(batching):
    few, many = 3, 12
    adjoint = [peak(Adjoint(batching), steps) for steps in (few, many)]
    unroll = [peak(Unroll(batching), steps) for steps in (few, many)]
    activations = (unroll[1] - unroll[0]) / (many - few)
    assert activations > 20 * weights()
    assert unroll[1] > 2.5 * unroll[0]
    # What is left to Adjoint is one copy of the weights a step.
    assert adjoint[1] - adjoint[0] <= 1.1 * (many - few) * weights()
    assert adjoint[1] < unroll[1] / 2


def test_a_loop_over_tasks_holds_one_task():
    one, four = (peak(Unroll("loop"), 2, tasks) for tasks in (1, 4))
    assert four < one + 4 * weights()
    assert peak(Unroll("vmap"), 2, 4) > 3 * peak(Unroll("vmap"), 2, 1)
