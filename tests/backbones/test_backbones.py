"""Sizes, parameter counts and the norm policies of the networks."""

import pytest
import torch
from torch import nn

from metalearn.backbones import MLP, CifarResNet, Conv4, ResNet12
from metalearn.errors import UsageError
from metalearn.functional import pure
from tests.tasks import generator, network


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize(
    "size, downsample, features",
    [
        (28, "pool", 64),
        (28, "stride", 64 * 2 * 2),
        (32, "pool", 64 * 2 * 2),
        (84, "pool", 64 * 5 * 5),
        (84, "stride", 64 * 6 * 6),
        (16, "pool", 64),
    ],
)
def test_feature_size(size, downsample, features):
    net = Conv4(None, size=size, downsample=downsample)
    assert net(torch.zeros(2, 1, size, size)).shape == (2, features)
    assert Conv4(7, size=size, downsample=downsample).head.weight.shape == (7, features)


def test_the_literatures_parameter_counts():
    assert sum(p.numel() for p in Conv4(5).parameters()) == 111_936 + 64 * 5 + 5
    colour = Conv4(5, channels=3, filters=32, size=84)
    assert sum(p.numel() for p in colour.parameters()) == 32_901


def test_stride_halves_what_pooling_keeps():
    strides = [m.stride[0] for m in Conv4(downsample="stride").modules() if hasattr(m, "stride")]
    assert strides == [2, 2, 2, 2]
    assert sum(isinstance(m, nn.MaxPool2d) for m in Conv4().modules()) == 4


def test_the_last_map_may_be_averaged():
    torch.manual_seed(0)
    net = Conv4(3, filters=4, size=16, downsample="stride", norm="none", last_map="mean")
    x = torch.randn(2, 1, 16, 16)
    assert net.head.weight.shape == (3, 4)
    torch.testing.assert_close(net(x), net.head(net.features(x).flatten(2).mean(2)))


@pytest.mark.parametrize(
    "norm, sees_others",
    [("transductive", True), ("running", False), ("group", False), ("none", False)],
)
def test_whether_queries_see_one_another(norm, sees_others):
    net = network(lambda: Conv4(3, filters=4, size=16, norm=norm))
    x = images()
    together, alone = net(x), torch.cat([net(one[None]) for one in x])
    assert (float((together - alone).detach().abs().max()) > 1e-3) == sees_others


def test_running_policy_ignores_train_and_eval():
    net = network(lambda: Conv4(3, filters=4, size=16, norm="running"))
    x = images()
    before = {n: b.clone() for n, b in net.named_buffers()}
    assert len(before) == 8
    torch.testing.assert_close(net.train()(x), net.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("filters, groups", [(16, 8), (12, 1)])
def test_groups(filters, groups):
    norms = [
        m for m in Conv4(filters=filters, norm="group").modules() if isinstance(m, nn.GroupNorm)
    ]
    assert [m.num_groups for m in norms] == [groups] * 4


@pytest.mark.parametrize(
    "fault, line",
    [
        ({"size": 8}, "images of 8x8 are too small"),
        ({"norm": "batch"}, "norm='batch' is not known; use transductive, support"),
        ({"downsample": "half"}, "downsample='half' is not known; use pool or stride"),
    ],
)
def test_faults(fault, line):
    with pytest.raises(UsageError, match=line):
        Conv4(**fault)


def test_mlp_by_hand():
    net = network(lambda: MLP(6, 2, (5, 4)))
    a, b, head = (m for m in net.modules() if isinstance(m, nn.Linear))
    x = images(3, 4)[:, :, :2, :3]
    hidden = (x.reshape(3, 6) @ a.weight.T + a.bias).clamp(min=0)
    hidden = (hidden @ b.weight.T + b.bias).clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ head.weight.T + head.bias, rtol=1e-12, atol=1e-14)
    features = MLP(6, None, (5, 4))
    assert features(torch.zeros(3, 6)).shape == (3, 4)


def test_the_papers_sinusoid_network():
    assert sum(p.numel() for p in MLP().parameters()) == 1 * 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert list(pure(MLP()).params)[-1] == "head.bias"


@pytest.mark.parametrize("make", [ResNet12, CifarResNet])
@pytest.mark.parametrize("size", [20, 33])
def test_a_map_that_is_flattened_averages_to_the_usual_features(make, size: int) -> None:
    options = {"widths": (4, 4, 4, 6)} if make is ResNet12 else {"depth": 8}
    mean, flat = (
        network(lambda how=how: make(3, 2, size, last_map=how, **options))
        for how in ("mean", "flatten")
    )
    x = torch.randn(2, 2, size, size, generator=generator(), dtype=torch.float64)
    assert flat(x).shape == (2, 3)
    flat.head = mean.head = nn.Identity()
    flat.load_state_dict(mean.state_dict())
    channels = mean(x).shape[1]
    torch.testing.assert_close(flat(x).unflatten(1, (channels, -1)).mean(2), mean(x))
    with pytest.raises(UsageError, match="last_map='whole' is not known; use mean or flatten"):
        make(3, 2, size, last_map="whole", **options)
