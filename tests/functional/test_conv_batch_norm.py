"""Batch norm by the moments of patches equals batch norm of the convolution's output."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap

from metalearn.engine.lowering import compiling
from metalearn.functional import pure
from metalearn.functional.conv_batch_norm import centred_patches, patch_moments, seen
from metalearn.functional.norms import BatchNorm
from tests.engine.test_lowering import orders, random, same
from tests.tasks import generator

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")

LAYERS = {
    "3x3": {"in_channels": 1, "kernel_size": 3, "padding": 1},
    "colour, no bias": {"in_channels": 3, "kernel_size": 3, "padding": 1, "bias": False},
    "stride": {"in_channels": 2, "kernel_size": (3, 2), "stride": 2, "padding": (1, 0)},
    "dilated, same": {"in_channels": 1, "kernel_size": 3, "padding": "same", "dilation": 2},
    "1x1": {"in_channels": 3, "kernel_size": 1},
}


def first_block(**layer) -> tuple:
    """The output of a first convolution and its norm as a function of their parameters."""
    torch.manual_seed(0)
    net = pure(nn.Sequential(nn.Conv2d(out_channels=28, **layer), nn.BatchNorm2d(28)).double())
    names = list(net.params)
    x = random(4, layer["in_channels"], 9, 8, seed=5) * 2 + 3

    def output(*weights: torch.Tensor) -> torch.Tensor:
        return net.apply(dict(zip(names, weights, strict=True)), x)

    return output, [random(*net.params[n].shape, seed=i) for i, n in enumerate(names)]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_order_equals_that_of_the_output(layer):
    output, weights = first_block(**layer)
    want = orders(output, *weights)
    with compiling():
        same(orders(output, *weights), want, rtol=1e-9)


UNFOLDED = {name: layer for name, layer in LAYERS.items() if layer.get("padding") != "same"}
"""F.unfold has no such padding."""


@pytest.mark.parametrize("layer", UNFOLDED.values(), ids=UNFOLDED)
def test_moments_are_those_of_the_unfolded_images(layer):
    conv = nn.Conv2d(out_channels=28, **layer)
    x = random(4, conv.in_channels, 9, 8) + 100
    options = conv.stride, conv.padding, conv.dilation
    patches, centre = centred_patches(x, conv.weight.shape, options)
    mean, covariance = patch_moments(patches)
    columns = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    columns = columns.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean + centre, columns.mean(1))
    torch.testing.assert_close(covariance, columns.cov(correction=0))


def test_tasks_at_once():
    output, weights = first_block(in_channels=1, kernel_size=3)
    many = [torch.stack([w, w * 2, w.flip(0)]) for w in weights]

    def slope(*weights):
        return grad(lambda *w: output(*w).sin().sum(), argnums=(0, 1, 2, 3))(*weights)

    want = vmap(slope)(*many)
    with compiling():
        same(vmap(slope)(*many), want, rtol=1e-9)


def test_a_faint_output_keeps_its_digits():
    """Weights that see only what the images hardly vary in, on bright images in float32."""
    torch.manual_seed(0)
    images = 100 + 30 * torch.randn(20, 1, 16, 16, generator=generator(0)).cumsum(3)
    conv = nn.Conv2d(1, 9, 3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[0.0, 0, 0], [1, -2, 1], [0, 0, 0]]))
    norm = BatchNorm(9)
    want = norm.double()(conv.double()(images.double()))
    with compiling():
        got = norm.float()(conv.float()(images))
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_constant_images_give_no_nan():
    conv, norm = nn.Conv2d(3, 32, 3), BatchNorm(32)
    with compiling():
        y = norm(conv(torch.full((5, 3, 8, 8), 255.0)))
    assert y.isfinite().all()


@pytest.mark.parametrize("case", ["differentiated", "padding", "wide", "later", "outside"])
def test_only_where_it_is_cheaper(case):
    """The rest takes the plain way."""
    conv = nn.Conv2d(8 if case == "wide" else 1, 16, 3)
    x = torch.zeros(2, conv.in_channels, 6, 6, requires_grad=case == "differentiated")
    if case == "outside":
        assert seen(conv(x)) is None
        return
    with compiling():
        y = conv(x)
        known = seen(y.relu() if case == "later" else y)
        assert (known is None) == (case != "padding")
        if case == "padding":  # an example of weight 0 is in no mean
            norm = BatchNorm(16)
            weight = torch.tensor([1.0, 0.0])
            x = random(2, 1, 6, 6).float()
            net = pure(nn.Sequential(conv, norm))
            alone = net.apply(net.params, x[:1])
            got = net.apply(net.params, x, weight)[:1]
            torch.testing.assert_close(got, alone)
