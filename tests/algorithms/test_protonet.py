"""ProtoNet's prototypes and logits by hand, and what it refuses."""

import pytest
import torch
from torch import nn

from metalearn import Batch, adapt
from metalearn.algorithms import ProtoNet
from metalearn.errors import UsageError
from metalearn.types import Given

SUPPORT = Batch(
    torch.tensor([[0.0, 2.0], [4.0, 0.0], [0.0, 4.0], [2.0, 0.0]]), torch.tensor([1, 0, 1, 0])
)
QUERIES = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 5.0]])


class Plane(nn.Module):
    """The embedding is the input, times one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


def test_prototypes_are_class_means():
    algo = ProtoNet(Plane())
    fast = adapt(algo, algo.init(), SUPPORT)
    want = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(fast["prototypes"].detach(), want)
    assert fast["counts"].tolist() == [2, 2, 0, 0]


def test_padding_is_in_no_prototype():
    algo = ProtoNet(Plane())
    weighted = SUPPORT._replace(weight=torch.tensor([1.0, 1.0, 0.0, 1.0]))
    fast = adapt(algo, algo.init(), weighted)
    assert fast["prototypes"][1].tolist() == [0.0, 2.0]
    assert fast["counts"].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("learn", [False, True])
def test_squared_distances(temperature, learn):
    algo = ProtoNet(Plane(), temperature=temperature, learn_temperature=learn)
    meta = algo.init()
    assert set(meta["hyper"]) == ({"log_temperature"} if learn else set())
    logits = algo.predict(meta, adapt(algo, meta, SUPPORT), QUERIES)
    want = -torch.tensor([[0.0, 18.0], [5.0, 5.0], [34.0, 4.0]]) / temperature
    torch.testing.assert_close(logits[:, :2].detach(), want)
    assert (logits[:, 2:] == torch.finfo(torch.float32).min).all()
    assert logits.softmax(1)[:, 2:].sum() == 0


def test_cosines():
    algo = ProtoNet(Plane(), distance="cosine", temperature=0.1)
    meta = algo.init()
    logits = algo.predict(meta, adapt(algo, meta, SUPPORT), QUERIES)
    want = torch.tensor([[10.0, 0.0], [7.0710678, 7.0710678], [0.0, 10.0]])
    torch.testing.assert_close(logits[:, :2].detach(), want)


def test_cosine_of_a_zero_feature_has_a_gradient():
    algo = ProtoNet(Plane(), distance="cosine")
    meta = algo.init()
    zero = SUPPORT._replace(x=torch.zeros(4, 2))

    def loss(scale):
        there = {**meta, "init": {"scale": scale}}
        return algo.outer_loss(there, algo.begin(there, Given(zero)), zero)[0]

    assert torch.isfinite(torch.func.grad(loss)(meta["init"]["scale"]))


@pytest.mark.parametrize("fault", [{"distance": "manhattan"}, {"temperature": 0.0}])
def test_faults(fault):
    with pytest.raises(UsageError, match=f"{next(iter(fault))}="):
        ProtoNet(Plane(), **fault)
