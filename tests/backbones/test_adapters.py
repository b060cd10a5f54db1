"""Residual adapters, FiLM and the map before the head: nothing at the start, and where they are."""

import pytest
import torch
from torch import nn

from metalearn.backbones import CifarResNet, Conv4, ResNet12, WideResNet, adaptation, timm_model
from metalearn.backbones.adapters import Aligned, FiLM, ResidualAdapter, film, residual
from metalearn.backbones.heads import head_name
from metalearn.errors import UsageError
from metalearn.functional import pure


def images(channels: int = 1, size: int = 16) -> torch.Tensor:
    return torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0))


NETWORKS = {
    **{
        f"conv4-{norm}": lambda norm=norm: Conv4(3, 1, 4, 16, norm=norm)
        for norm in ("transductive", "frozen", "group", "none")
    },
    "conv4-strided": lambda: Conv4(3, 1, 4, 16, "stride"),
    "resnet12": lambda: ResNet12(3, 1, 16, (4, 4, 8, 8)),
    "wide": lambda: WideResNet(3, 1, 16, 10, 1, norm="group"),
    "cifar": lambda: CifarResNet(3, 1, 16, 8),
    "convnext": lambda: timm_model("test_convnext", 3, 1, 32),  # LayerNorm2d beside LayerNorm
    "vit": lambda: timm_model("test_vit", 3, 1, 32, options={"patch_size": 8}),
}
WITHOUT = {("convnext", "tsa"), ("vit", "tsa")}  # patches and grouped convolutions


@pytest.mark.parametrize("name", NETWORKS)
def test_the_start_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    before = pure(NETWORKS[name]())
    size = 32 if name in ("convnext", "vit") else 16
    x, path = images(size=size), head_name(before.module)
    want = before.apply({**before.params, **before.buffers}, x)
    for kind in ("tsa", "film", "url"):
        chosen = getattr(adaptation, kind)()
        if (name, kind) in WITHOUT:
            with pytest.raises(UsageError, match="adaptation=tsa finds no convolution"):
                chosen.prepare(before.module, path)
            continue
        net = pure(chosen.prepare(before.module, path))
        found = net.apply({**net.params, **net.buffers}, x)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
        head = {n for n in before.params if n.startswith(f"{path}.")}
        assert set(net.params) == set(chosen.adapting(net.module, path))
        assert len(net.params) > len(head)


def count(net: nn.Module, kind: type) -> int:
    return sum(isinstance(part, kind) for part in net.modules())


def test_where_they_are() -> None:
    assert count(residual(ResNet12(3, 1, 16, (4, 4, 8, 8)), "head"), ResidualAdapter) == 12
    assert count(residual(CifarResNet(3, 1, 16, 8), "head"), ResidualAdapter) == 7
    assert count(film(ResNet12(3, 1, 16, (4, 4, 8, 8)), "head"), FiLM) == 16
    assert count(film(Conv4(3, norm="none"), "head"), FiLM) == 4  # the convolutions
    assert count(adaptation.tsa().prepare(Conv4(3), "head"), Aligned) == 1
    assert count(adaptation.tsa(align=False).prepare(Conv4(3), "head"), Aligned) == 0
    assert count(adaptation.tsa().prepare(Conv4(None), None), Aligned) == 0
    names = set(adaptation.film().adapting(adaptation.film().prepare(Conv4(3), "head"), "head"))
    own = {f"features.{i}.{part}" for i in (1, 5, 9, 13) for part in ("scale", "shift")}
    assert names == own | {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.Conv2d(4, 6, (5, 1), padding=(2, 0)),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        nn.Conv2d(4, 6, 3, padding="same"),
    ],
    ids=str,
)
def test_an_adapter_is_the_centre_of_the_kernel(layer: nn.Conv2d) -> None:
    net = residual(nn.Sequential(layer), None).double()
    (adapted,) = net
    nn.init.normal_(adapted.adapter.weight)
    x = torch.rand(2, 4, 9, 9, dtype=torch.float64)
    layer = nn.utils.skip_init(type(layer), 4, 6, layer.kernel_size, layer.stride, layer.padding,
                               layer.dilation).double()  # fmt: skip
    layer.weight, layer.bias = nn.Parameter(adapted.weight.detach()), adapted.bias
    torch.testing.assert_close(net(x), layer(x))


def test_film_stands_for_a_norm_where_its_weights_are_read() -> None:
    # As TransformerEncoderLayer does in its fast path.
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    net = film(nn.Sequential(layer), None)
    for part in net.modules():
        if isinstance(part, FiLM):
            nn.init.normal_(part.scale)
            nn.init.normal_(part.shift)
    x = torch.rand(2, 5, 8, dtype=torch.float64)
    slow = net(x.requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(net(x.detach()), slow.detach())
    assert count(net, FiLM) == 2


def test_what_cannot_take_them_is_one_line() -> None:
    valid = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(UsageError, match="tsa finds no convolution that keeps the size of its"):
        adaptation.tsa().prepare(valid, "3")
    with pytest.raises(UsageError, match="adaptation=film finds no norm layer, convolution or"):
        adaptation.film().prepare(nn.Linear(4, 3), "")
    with pytest.raises(UsageError, match="here are features alone; use algorithm=maml"):
        adaptation.url().prepare(Conv4(None), None)
    with pytest.raises(UsageError, match="ends in 1 .Conv2d., not a linear layer"):
        adaptation.url().prepare(valid, "1")
    lone = adaptation.url().prepare(nn.Linear(4, 3), "")
    assert isinstance(lone, Aligned) and set(adaptation.url().adapting(lone, "")) == {
        "align.weight", "base.weight", "base.bias"
    }  # fmt: skip
