"""ANIL adapts its head alone."""

import pytest
import torch
from torch import nn

from metalearn import adapt
from metalearn.algorithms import ANIL
from metalearn.backbones import Conv4
from metalearn.errors import UsageError
from metalearn.inner import meta_sgd, sgd
from metalearn.types import Given
from tests.tasks import classification, network, task


def test_the_head_is_found_and_adapts_alone():
    net = network(lambda: Conv4(3, filters=4, size=16))
    algo = ANIL(net, steps=1, rule=meta_sgd(0.1))
    meta = algo.init()
    assert set(algo.adapting) == {"head.weight", "head.bias"}
    assert set(meta["hyper"]) == {"rate.head.weight", "rate.head.bias"}
    support = task(classification(), 0).support
    fast = adapt(algo, meta, support)
    assert set(fast) == {"head.weight", "head.bias"}
    outputs = net(support.x)
    nn.functional.cross_entropy(outputs, support.y).backward()
    for name in ("weight", "bias"):
        want = getattr(net.head, name) - 0.1 * getattr(net.head, name).grad
        torch.testing.assert_close(fast[f"head.{name}"], want, rtol=1e-10, atol=1e-14)


def test_another_part_may_adapt():
    net = network(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    algo = ANIL(net, rule=sgd(0.1), head="0")
    fast = adapt(algo, algo.init(), task(classification(shape=(4,)), 0).support)
    assert set(fast) == {"0.weight", "0.bias"}


def test_a_prefix_is_no_submodule():
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(11)])
    algo = ANIL(net, head="1")
    fast = algo.begin(algo.init(), Given(task(classification(shape=(3,)), 0).support))
    assert set(fast) == {"1.weight", "1.bias"}


def test_a_head_that_is_not_there():
    with pytest.raises(UsageError, match="head='classifier'; name a submodule"):
        ANIL(nn.Linear(4, 3), head="classifier")
