"""ResNet-12: the literature's parameter counts, and its forward pass written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn.backbones import ResNet12
from metalearn.backbones.norms import describe
from metalearn.errors import UsageError
from metalearn.functional import pure
from tests.tasks import generator, network


@pytest.mark.parametrize(
    "widths, count",
    # Convolutions without bias, batch norms of two numbers a channel.
    [((64, 160, 320, 640), 12_424_320), ((64, 128, 256, 512), 7_996_800)],
)
def test_the_literatures_parameter_counts(widths, count):
    net = ResNet12(None, widths=widths)
    assert sum(p.numel() for p in net.parameters()) == count
    by_hand = sum(
        9 * c * (i + c + c) + i * c + 4 * 2 * c for i, c in zip((3, *widths), widths, strict=False)
    )
    assert by_hand == count
    assert ResNet12(7, widths=widths).head.weight.shape == (7, widths[-1])


@pytest.mark.parametrize("size", [16, 28, 32, 84])
def test_features_are_the_last_width(size):
    net = ResNet12(None, 1, size, (4, 4, 4, 12))
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 12)


def test_forward_by_hand():
    """Activation before pooling, as the papers have it; each norm by the batch's statistics."""
    net = network(lambda: ResNet12(3, 2, 20, (4, 6, 8, 10)))
    x = torch.randn(5, 2, 20, 20, generator=generator(), dtype=torch.float64)
    weights = iter(net.parameters())

    def conv_norm(h):
        kernel, scale, shift = next(weights), next(weights), next(weights)
        h = F.conv2d(h, kernel, padding=kernel.shape[-1] // 2)
        return F.batch_norm(h, None, None, scale, shift, training=True)

    h = x
    for _ in range(4):
        body = F.leaky_relu(conv_norm(h), 0.1)
        body = conv_norm(F.leaky_relu(conv_norm(body), 0.1))
        h = F.max_pool2d(F.leaky_relu(body + conv_norm(h), 0.1), 2)
    want = h.mean((2, 3)) @ next(weights).T + next(weights)
    torch.testing.assert_close(net(x), want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("norm", ["transductive", "support", "running", "group", "none"])
def test_norm_policies(norm):
    net = ResNet12(3, 3, 16, (4, 4, 4, 4), norm=norm)
    assert describe(net) == norm
    biased = [m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert biased == [norm == "none"] * 16


def test_dropout_only_in_train_mode():
    net = pure(network(lambda: ResNet12(3, 3, 16, (4, 4, 4, 4), drop_rate=0.3, norm="none")))
    x = torch.randn(4, 3, 16, 16, generator=generator(), dtype=torch.float64)
    assert not torch.equal(net.apply(net.params, x), net.apply(net.params, x))
    plain = pure(network(lambda: ResNet12(3, 3, 16, (4, 4, 4, 4), norm="none")))
    with net.evaluating():
        torch.testing.assert_close(
            net.apply(net.params, x), plain.apply(net.params, x), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    "fault, line",
    [
        ({"size": 15}, "images of 15x15 are too small for ResNet12"),
        ({"widths": (4, 4)}, "widths=\\[4, 4\\] must be 4 numbers"),
        ({"drop_rate": 1.0}, "drop_rate=1.0 must lie in"),
        ({"norm": "batch"}, "norm='batch' is not known"),
    ],
)
def test_faults(fault, line):
    with pytest.raises(UsageError, match=line):
        ResNet12(**fault)
