"""Networks of torchvision's, timm's and torch's own transformers: the meta-gradient against the
original module in a plain float64 loop, fused attention off."""

import copy
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock, ResNet

from metalearn.algorithms import MAML
from metalearn.backbones import (
    CifarResNet,
    ResNet12,
    WideResNet,
    timm_model,
    torchvision_model,
)
from metalearn.functional.norms import BatchNorm
from metalearn.gradients import Adjoint, Unroll
from metalearn.inner import sgd
from tests.gradients import reference
from tests.tasks import apart, classification, network, on


class Sequences(nn.Module):
    """Rows of the image as a sequence, through `layer`, to the mean over places and a head."""

    def __init__(self, layer: nn.Module, width: int = 8):
        super().__init__()
        self.embed = nn.Linear(3 * 32, width)
        self.layer = layer
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        h = self.embed(x.transpose(1, 2).flatten(2)[:, ::4])
        if isinstance(self.layer, nn.MultiheadAttention):
            h = h + self.layer(h, h, h, need_weights=False)[0]
        else:
            h = self.layer(h)
        return self.head(h.mean(1))


def frozen(net: nn.Module) -> nn.Module:
    """All but the last stage and the head held fixed, with the statistics of the batch."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(("layer4", "fc")))
    return net


def encoder_layer(**given) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, **given)


def mobile() -> nn.Module:
    """Squeeze-and-excitation with hardsigmoid, hardswish, batch norm."""
    block = InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)
    return MobileNetV3([block], 16, num_classes=3, dropout=0.0)


class Output(nn.Module):
    """The sequence alone of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def residual(**given) -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, **given)


def quiet(net: nn.Module) -> nn.Module:
    """Scales at which activations do not grow, where no batch normalises them."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d | BatchNorm):
            part.weight.data.mul_(0.1)
    return net


def torch_norms(net: nn.Module) -> nn.Module:
    """A copy whose batch norms are torch's, with the same tensors: the reference has none of
    metalearn's own."""
    net = copy.deepcopy(net)
    for path, part in list(net.named_modules()):
        if isinstance(part, BatchNorm):
            still = part.statistics == "running"
            norm = nn.BatchNorm2d(len(part.weight), part.eps, track_running_stats=still)
            norm.weight, norm.bias = part.weight, part.bias
            if still:
                norm.running_mean, norm.running_var = part.running_mean, part.running_var
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, norm.train(not still))
    return net


RATE = 0.05  # larger steps through a dozen batch norms of a few examples are chaotic
SMALL = {"size": 32, "outputs": 3}
NETWORKS = {
    "torchvision-resnet": residual,
    "torchvision-resnet-frozen": lambda: frozen(residual()),
    "torchvision-convnext": lambda: ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.0, num_classes=3
    ),
    "torchvision-mobilenet": mobile,
    "timm-vit": lambda: timm_model(
        "vit_tiny_patch16_224",
        options={"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
        **SMALL,
    ),
    "timm-convnext": lambda: timm_model(
        "convnext_atto", options={"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, **SMALL
    ),
    "timm-mobilenet-frozen": lambda: timm_model("mobilenetv3_small_050", norm="frozen", **SMALL),
    "timm-batchnormact": lambda: timm_model(
        "resnetv2_50", options={"layers": (1, 1), "channels": (16, 16), "stem_chs": 8}, **SMALL
    ),
    "encoder": lambda: Sequences(encoder_layer()),
    "encoder-gelu-norm-first": lambda: Sequences(encoder_layer(activation="gelu", norm_first=True)),
    "encoder-eval": lambda: Sequences(encoder_layer()).eval(),
    "two-encoders": lambda: Sequences(nn.TransformerEncoder(encoder_layer(), 2)),
    "attention": lambda: Sequences(nn.MultiheadAttention(8, 2, batch_first=True)),
    "lstm": lambda: Sequences(Output(nn.LSTM(8, 8, batch_first=True))),
    "resnet12": lambda: ResNet12(3, size=32, widths=(4, 4, 8, 8)),
    "resnet12-running": lambda: ResNet12(3, size=32, widths=(4, 4, 8, 8), norm="running"),
    "cifar-resnet8": lambda: CifarResNet(3, depth=8),
    "cifar-resnet8-frozen": lambda: CifarResNet(3, depth=8, norm="frozen"),
    "wide-resnet": lambda: WideResNet(3, depth=10, width=1),
}
FULL_SIZE = {
    "torchvision-resnet18": lambda: torchvision_model("resnet18", **SMALL),
    "torchvision-resnet18-frozen": lambda: quiet(
        torchvision_model("resnet18", norm="frozen", **SMALL)
    ),
    "torchvision-resnet18-running": lambda: quiet(
        torchvision_model("resnet18", norm="running", **SMALL)
    ),
    "cifar-resnet56": lambda: CifarResNet(3),
    "cifar-resnet56-frozen": lambda: quiet(CifarResNet(3, norm="frozen")),
    "cifar-resnet56-running": lambda: quiet(CifarResNet(3, norm="running")),
    "timm-vit-tiny": lambda: timm_model("vit_tiny_patch16_224", options={"patch_size": 4}, **SMALL),
    "timm-resnet18": lambda: timm_model("resnet18", **SMALL),
    "timm-convnext-atto": lambda: timm_model("convnext_atto", **SMALL),
    "torchvision-densenet": lambda: torchvision_model("densenet121", **SMALL),
    # Without its stochastic depth.
    "torchvision-swin": lambda: torchvision_model("swin_t", **SMALL).eval(),
}


def hardsigmoid(x, inplace=False):
    """torch's own has no double backward."""
    return F.relu6(x + 3) / 6


def compare(build) -> None:
    episodes = classification(tasks=2, shots=2, queries=5, shape=(3, 32, 32))
    net = network(build)
    plain = torch_norms(net)
    # Its dropout and stochastic depth have rate 0; what is left of the mode is the norms'.
    with sdpa_kernel(SDPBackend.MATH), patch.object(F, "hardsigmoid", hardsigmoid):
        want = reference.meta_gradient(plain, {}, episodes, 2, rates=lambda *_: RATE)
    algo = MAML(net, steps=2, rule=sgd(RATE))
    meta = algo.init()
    recurrent = any(isinstance(part, nn.RNNBase) for part in net.modules())
    for strategy in (Unroll, Adjoint):
        for batching in ("loop",) if recurrent else ("loop", "vmap"):
            got, _ = on(strategy(), batching)(algo, meta, episodes)
            assert apart(got, want) < 1e-8, (strategy, batching)
    for name, buffer in algo.net.buffers.items():
        torch.testing.assert_close(meta["buffers"][name], buffer, rtol=0, atol=0)


THIRD = [
    pytest.param(name, marks=[] if place % 3 == 2 else pytest.mark.slow)
    for place, name in enumerate(NETWORKS)
]


@pytest.mark.parametrize("name", THIRD)
def test_agrees_with_the_plain_loop(name):
    compare(NETWORKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_named_networks_agree_with_the_plain_loop(name):
    compare(FULL_SIZE[name])


def test_frozen_layers_stay_out_of_what_is_learned():
    algo = MAML(frozen(residual()), steps=1)
    assert {n.split(".")[0] for n in algo.net.params} == {"layer4", "fc"}
    assert "conv1.weight" in algo.net.buffers
