"""CIFAR's residual networks: the papers' parameter counts, forward passes written out, and the
real weights of two of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalearn.backbones import CifarResNet, WideResNet
from metalearn.backbones.defaults import CIFAR10
from metalearn.backbones.weights import load_into, read_weights
from metalearn.data.paths import data_folder
from metalearn.errors import UsageError
from tests.tasks import generator, network


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_the_papers_parameter_counts(depth, millions):
    """He et al. 2016, table 6."""
    count = sum(p.numel() for p in CifarResNet(10, depth=depth).parameters())
    assert round(count / 1e6, 2) == millions


def test_the_papers_parameter_count_of_wrn_28_10():
    """Zagoruyko, Komodakis 2016, table 4: 36.5 million; 640 features."""
    with torch.device("meta"):
        net = WideResNet(10)
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 36.5
        assert WideResNet(None)(torch.zeros(2, 3, 32, 32)).shape == (2, 640)


def norm(h, scale, shift):
    return F.batch_norm(h, None, None, scale, shift, training=True)


def test_forward_by_hand():
    net = network(lambda: CifarResNet(3, 2, 12, depth=14))
    x = torch.randn(4, 2, 12, 12, generator=generator(), dtype=torch.float64)
    weights = iter(net.parameters())

    def conv_norm(h, stride=1):
        kernel, scale, shift = next(weights), next(weights), next(weights)
        return norm(F.conv2d(h, kernel, stride=stride, padding=1), scale, shift)

    h = conv_norm(x).relu()
    for width, stride in [(16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)]:
        inside = conv_norm(conv_norm(h, stride).relu())
        if stride == 2:
            zeros = h.new_zeros(len(h), width // 4, *inside.shape[2:])
            h = torch.cat([zeros, h[:, :, ::2, ::2], zeros], 1)
        h = (h + inside).relu()
    want = h.mean((2, 3)) @ next(weights).T + next(weights)
    assert next(weights, None) is None
    torch.testing.assert_close(net(x), want)


def test_wide_forward_by_hand():
    net = network(lambda: WideResNet(3, 2, 12, depth=10, width=2))
    x = torch.randn(4, 2, 12, 12, generator=generator(), dtype=torch.float64)
    weights = dict(net.named_parameters())

    def activated(h, name):
        return norm(h, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()

    h = F.conv2d(x, weights["conv1.weight"], padding=1)
    for block, stride in enumerate((1, 2, 2)):
        at = f"features.{block}."
        first = activated(h, f"{at}bn1")
        inside = F.conv2d(first, weights[f"{at}conv1.weight"], stride=stride, padding=1)
        inside = F.conv2d(activated(inside, f"{at}bn2"), weights[f"{at}conv2.weight"], padding=1)
        h = inside + F.conv2d(first, weights[f"{at}shortcut.weight"], stride=stride)
    want = activated(h, "bn").mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(net(x), want)


@pytest.mark.parametrize(
    "build, line",
    [
        (lambda: CifarResNet(depth=51), "depth=51 must be 6n \\+ 2; use 20, 32, 44 or 56"),
        (lambda: WideResNet(depth=20), "depth=20 must be 6n \\+ 4"),
        (lambda: WideResNet(width=0), "width=0 must be 1 or more"),
        (lambda: CifarResNet(size=2), "too small"),
    ],
)
def test_mistakes(build, line):
    with pytest.raises(UsageError, match=line):
        build()


@pytest.mark.parametrize("depth", CIFAR10)
def test_the_classifiers_of_cifar10_load_in_full(depth):
    known = CIFAR10[depth]
    data = data_folder()
    if data is None or not (data / "pretrained" / known.name).is_file():
        pytest.skip(f"no {known.name} in METALEARN_DATA or ../shared/data")
    path = data / "pretrained" / known.name
    net = CifarResNet(10, depth=depth, norm="frozen")
    report = load_into(net, read_weights(path, known.sha256))
    assert report.share == 1 and not report.missing and not report.unexpected
    assert len(report.matched) == 5 * (depth - 1) + 2 and report.head == "the head (head) too"
    held = torch.load(path, map_location="cpu", weights_only=True)
    assert round(float(held["best_prec1"]), 2) == known.accuracy
    state = {n.removeprefix("module."): t for n, t in held["state_dict"].items()}

    # The file's network from torch's own layers, by its names alone.
    def conv_norm(h, conv, bn, stride=1):
        h = F.conv2d(h, state[f"{conv}.weight"], stride=stride, padding=1)
        at = [state[f"{bn}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(h, *at, training=False)

    x = torch.randn(3, 3, 32, 32, generator=generator())
    h = conv_norm(x, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for place in range((depth - 2) // 6):
            at = f"layer{stage}.{place}."
            stride = 2 if stage > 1 and place == 0 else 1
            inside = conv_norm(h, f"{at}conv1", f"{at}bn1", stride).relu()
            inside = conv_norm(inside, f"{at}conv2", f"{at}bn2")
            if stride == 2:
                h = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, h.shape[1] // 2, h.shape[1] // 2))
            h = (h + inside).relu()
    want = F.linear(h.mean((2, 3)), state["linear.weight"], state["linear.bias"])
    with torch.no_grad():
        torch.testing.assert_close(net(x), want, rtol=1e-4, atol=1e-4)


def test_policies_name_themselves():
    from metalearn.backbones.norms import describe
    from metalearn.functional import pure

    for policy in ("transductive", "support", "running", "frozen", "none"):
        assert describe(pure(CifarResNet(None, depth=8, norm=policy)).module) == policy


def test_frozen_averages_are_never_moved():
    from metalearn.functional import pure

    x = torch.randn(4, 3, 8, 8, generator=generator())
    for build in (
        lambda norm: CifarResNet(None, depth=8, norm=norm),
        lambda norm: nn.Sequential(CifarResNet(None, depth=14, norm=norm)),
    ):
        frozen, running = pure(build("frozen")), pure(build("running"))
        assert frozen.track(frozen.params, frozen.buffers, x) is frozen.buffers
        moved = running.track(running.params, running.buffers, x)
        assert all(not torch.equal(moved[n], running.buffers[n]) for n in moved)
