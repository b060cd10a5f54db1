"""Classifiers of torchvision and timm by name: outputs, channels, norms, mistakes."""

import copy
from functools import partial

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from metalearn.backbones import timm_model, torchvision_model
from metalearn.backbones.norms import describe
from metalearn.errors import UsageError
from metalearn.functional import pure
from tests.tasks import generator, network

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    "build, features",
    [
        (lambda n, c: torchvision_model("resnet18", n, c, 28), 512),
        (lambda n, c: torchvision_model("convnext_tiny", n, c, 32), 768),
        (lambda n, c: torchvision_model("mobilenet_v3_small", n, c, 32), 1024),
        (lambda n, c: timm_model("resnet18", n, c, 28), 512),
        (lambda n, c: timm_model("convnext_atto", n, c, 32), 320),
        (lambda n, c: timm_model("vit_tiny_patch16_224", n, c, 32, options=VIT), 16),
    ],
)
@pytest.mark.parametrize("outputs, channels", [(7, 3), (None, 1)])
def test_outputs_and_channels(build, features, outputs, channels):
    net = build(outputs, channels)
    x = torch.rand(2, channels, 32, 32, generator=generator())
    assert net(x).shape == (2, outputs or features)
    assert net.training


def test_grey_is_the_same_grey_in_three_channels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        grey = torchvision_model("resnet18", 5, 1, 32)
        torch.manual_seed(0)
        colour = torchvision_model("resnet18", 5, 3, 32)
    x = torch.rand(2, 1, 32, 32, generator=generator())
    got, want = grey.eval()(x), colour.eval()(x.expand(2, 3, 32, 32))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "build", [lambda norm: torchvision_model("resnet18", 3, 3, 32, norm), lambda norm: small(norm)]
)
@pytest.mark.parametrize("norm, sees_others", [("transductive", True), ("frozen", False)])
def test_whether_queries_see_one_another(build, norm, sees_others):
    net = pure(network(lambda: build(norm), dtype=torch.float32).double())
    x = torch.randn(3, 3, 32, 32, generator=generator(), dtype=torch.float64)
    weights = {**net.buffers, **{n: 0.3 * p for n, p in net.params.items()}}
    for _ in range(2):
        together = net.apply(weights, x)
        alone = torch.cat([net.apply(weights, one[None]) for one in x])
        assert bool((together - alone).abs().max() > 1e-3) == sees_others
    with net.evaluating():
        torch.testing.assert_close(net.apply(weights, x), together, rtol=0, atol=0)
    assert describe(net.module) == norm


def small(norm: str) -> nn.Module:
    """Batch norm with the activation inside, in a forward of timm's own."""
    options = {"layers": (1, 1), "channels": (16, 16), "stem_chs": 8}
    net = timm_model("resnetv2_50", 3, 3, 32, norm, options)
    assert any(isinstance(part, BatchNormAct2d) for part in net.modules())
    return net


def test_running_averages_follow_the_support_images():
    net = pure(torchvision_model("resnet18", 3, 3, 32, "running").double())
    assert describe(net.module) == "running"
    x = torch.randn(3, 3, 32, 32, generator=generator(), dtype=torch.float64)
    moved = net.track(net.params, net.buffers, x)
    first = torch.nn.functional.conv2d(x, net.params["conv1.weight"], stride=2, padding=3)
    want = 0.1 * first.mean((0, 2, 3))
    torch.testing.assert_close(moved["bn1.running_mean"], want)


def test_running_averages_of_a_norm_with_its_activation_inside():
    net = pure(network(lambda: small("running"), dtype=torch.float32).double())
    assert describe(net.module) == "running" and describe(small("frozen")) == "frozen"
    x = torch.randn(3, 3, 32, 32, generator=generator(), dtype=torch.float64)
    seen: dict[str, torch.Tensor] = {}
    for path, part in net.module.named_modules():
        if isinstance(part, BatchNormAct2d):
            note = partial(lambda path, _, given: seen.update({path: given[0].clone()}), path)
            part.register_forward_pre_hook(note)
    weight = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)  # the second image is padding
    moved = net.track(net.params, net.buffers, x, weight)
    assert len(seen) > 5
    for path, given in seen.items():
        real = given[[0, 2]]
        for kind, value in (("mean", real.mean((0, 2, 3))), ("var", real.var((0, 2, 3)))):
            name = f"{path}.running_{kind}"
            torch.testing.assert_close(moved[name], 0.9 * net.buffers[name] + 0.1 * value)
    kept = pure(small("frozen").double())
    assert kept.track(kept.params, kept.buffers, x) is kept.buffers


def test_building_leaves_the_running_averages_at_their_start():
    net = torchvision_model("resnet18", size=32)
    assert (net.bn1.running_mean == 0).all() and (net.bn1.running_var == 1).all()
    assert net.bn1.num_batches_tracked == 0


def test_apply_changes_nothing():
    module = small("transductive")
    before = copy.deepcopy(module.state_dict())
    net = pure(module)
    net.apply({**net.params, **net.buffers}, torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "build, line",
    [
        (
            lambda: torchvision_model("resnet81"),
            r"no classifier 'resnet81' \(did you mean resnet18",
        ),
        (lambda: timm_model("vit_tiny_patch16_244"), r"\(did you mean vit_tiny_patch16_224"),
        (
            lambda: torchvision_model("resnet18", size=32, norm="group"),
            "transductive, running, fro",
        ),
        (lambda: torchvision_model("alexnet", size=32), "cannot take images of 3x32x32"),
        # Its assertion has no words.
        (
            lambda: timm_model("halonet26t", size=36, options={"stem_chs": 4}),
            r"cannot take images of 3x36x36: AssertionError at .*block_size == 0",
        ),
        (lambda: torchvision_model("squeezenet1_0", None), "does not end in a linear layer"),
        (lambda: timm_model("resnet18", options={"wings": 2}), "unexpected keyword .*'wings'"),
    ],
)
def test_mistakes(build, line):
    with pytest.raises(UsageError, match=line):
        build()
