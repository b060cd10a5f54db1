"""Weights from files: what is matched, refused, pinned, and never executed."""

import json
import os
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file, save_model
from torch import nn

from metalearn.algorithms import MAML
from metalearn.backbones import Conv4, timm_model, torchvision_model
from metalearn.backbones.weights import load_into, read_weights
from metalearn.errors import UsageError
from metalearn.training.folder import save_weights
from tests.packages import installed
from tests.tasks import generator, network


def conv(outputs: int | None = 5, seed: int = 0, channels: int = 3, norm: str = "frozen"):
    return network(lambda: Conv4(outputs, channels, 4, 16, norm=norm), seed, dtype=torch.float32)


def saved(path, net: nn.Module, prefix: str = ""):
    state = {prefix + n: t for n, t in net.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same(a: nn.Module, b: nn.Module, but: str = "nothing") -> bool:
    theirs = b.state_dict()
    return all(torch.equal(t, theirs[n]) for n, t in a.state_dict().items() if but not in n)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".th"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_whatever_stands_before_the_names(tmp_path, suffix, prefix):
    source, net = conv(7), conv(5, seed=1)
    path = saved(tmp_path / f"w{suffix}", source, prefix)
    report = load_into(net, read_weights(path))
    assert report.share == 1 and not report.missing and not report.unexpected
    assert "5 outputs (the file's has 7)" in report.head
    assert same(net, source, but="head") and not same(net, source)


def test_the_networks_own_prefix(tmp_path):
    source, net = conv(None), nn.ModuleDict({"body": conv(None, seed=1)})
    load_into(net, read_weights(saved(tmp_path / "w.pth", source)))
    assert same(net["body"], source)


def test_a_head_under_another_name_and_one_of_the_same_classes(tmp_path):
    source, net = conv(5), conv(5, seed=1)
    state = OrderedDict((n.replace("head.", "linear."), t) for n, t in source.state_dict().items())
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, path)
    report = load_into(net, read_weights(path))
    assert report.head == "the head (head) too" and same(net, source)
    assert len(report.matched) == len(state)


def test_features_alone_have_no_head(tmp_path):
    source, net = conv(5), conv(None, seed=1)
    report = load_into(net, read_weights(saved(tmp_path / "w.pth", source)))
    assert report.share == 1 and report.head == "no head"
    assert report.unexpected == ["head.weight", "head.bias"]
    assert torch.equal(net.features[0].weight, source.features[0].weight)


def test_averages_that_the_network_does_not_use_are_told(tmp_path):
    source, net = conv(5), conv(5, 1, norm="transductive")
    report = load_into(net, read_weights(saved(tmp_path / "w.pth", source)))
    assert report.share == 1 and len(report.unexpected) == 8
    assert "unexpected: features.1.running_mean" in str(report)


def test_part_of_a_network_is_refused_and_changes_nothing(tmp_path):
    source, net, before = conv(5), conv(5, seed=1), conv(5, seed=1)
    state = {n: t for n, t in source.state_dict().items() if not n.startswith("features.4")}
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    numbers = {n: t.numel() for n, t in net.state_dict().items() if "head" not in n}
    share = 1 - sum(c for n, c in numbers.items() if n not in state) / sum(numbers.values())
    with pytest.raises(UsageError, match=f"has {share:.1%} .*missing: features.4.weight"):
        load_into(net, read_weights(path))
    assert same(net, before)
    report = load_into(net, read_weights(path), min_match=0.5)
    assert report.share == pytest.approx(share) and len(report.missing) == 2
    assert torch.equal(net.features[0].weight, source.features[0].weight)
    assert torch.equal(net.features[4].weight, before.features[4].weight)


def test_other_channels_keep_the_response_to_grey(tmp_path):
    colour, grey = conv(5), conv(5, seed=1, channels=1)
    report = load_into(grey, read_weights(saved(tmp_path / "w.pth", colour)))
    assert report.changed == ["features.0.weight"]
    x = torch.rand(2, 1, 16, 16, generator=generator())
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_position_embeddings_of_another_size(tmp_path):
    options = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    small = timm_model("vit_tiny_patch16_224", 5, 3, 32, options=options)
    large = timm_model("vit_tiny_patch16_224", 5, 3, 64, options=options)
    report = load_into(large, read_weights(saved(tmp_path / "w.pth", small)))
    assert report.changed == ["pos_embed"] and report.share == 1
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])  # the class token
    corners = large.pos_embed[0, 1:].view(8, 8, 16).mean((0, 1))
    wanted = small.pos_embed[0, 1:].view(4, 4, 16).mean((0, 1))
    torch.testing.assert_close(corners, wanted, atol=2e-3, rtol=0)


def test_torchvisions_own_layout(tmp_path):
    source, net = torchvision_model("resnet18", 10, 3, 32), torchvision_model("resnet18", 5, 3, 32)
    report = load_into(net, read_weights(saved(tmp_path / "w.pth", source)))
    assert report.share == 1 and same(net, source, but="fc.")


def test_a_run_folder_of_train(tmp_path):
    source, net = conv(5), conv(5, seed=1)
    save_weights(tmp_path / "weights.safetensors", MAML(source).init())
    load_into(net, read_weights(tmp_path))
    assert same(net, source)


def test_a_run_folder_of_pretrain_tells_its_images(tmp_path):
    images = {"size": 16, "channels": 3, "mean": [0.5], "std": [0.2]}
    told = {"metalearn": json.dumps({"images": images})}
    save_file(conv(5).state_dict(), tmp_path / "backbone.safetensors", metadata=told)
    assert read_weights(tmp_path).images == images


VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def vit(outputs: int | None = 5, size: int = 16, seed: int = 0, **options):
    name, given = "vit_tiny_patch16_224", {**VIT, **options}
    build = lambda: timm_model(name, outputs, 3, size, options=given)  # noqa: E731
    return network(build, seed, dtype=torch.float32)


def loaded(path, net: nn.Module, held, **options):
    torch.save(held, path / "w.pth")
    return load_into(net, read_weights(path / "w.pth"), **options)


def test_a_file_without_a_head_fills_the_whole_body(tmp_path):
    source, net = vit(None, seed=1), vit()
    report = loaded(tmp_path, net, source.state_dict())
    assert report.head == "the head (head) is new, with 5 outputs (the file has none)"
    assert report.share == 1
    assert all(torch.equal(net.state_dict()[n], t) for n, t in source.state_dict().items())


def test_dinov2_as_its_authors_saved_it(tmp_path):
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2}

    def dinov2(outputs: int | None, size: int):
        build = lambda: timm_model("vit_small_patch14_dinov2", outputs, 3, size, options=options)  # noqa: E731
        return network(build, size, dtype=torch.float32)

    source, net = dinov2(None, 28), dinov2(5, 42)
    report = loaded(tmp_path, net, {**source.state_dict(), "mask_token": torch.zeros(1, 16)})
    assert report.changed == ["pos_embed"] and not report.missing
    assert same(source, net, but="pos_embed")
    assert net.pos_embed.shape == (1, 1 + 9, 16)


def test_what_timm_converts_is_converted(tmp_path):
    options = {"patch_size": 2, "embed_dim": 8, "depths": (1,), "num_heads": (1,)}

    def swin(seed: int, window: int):
        given = {**options, "window_size": window}
        build = lambda: timm_model("swin_tiny_patch4_window7_224", 5, 3, 32, options=given)  # noqa: E731
        return network(build, seed, dtype=torch.float32)

    source, net = swin(1, 4), swin(0, 8)
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    report = loaded(tmp_path, net, source.state_dict())
    assert report.changed == [table] and report.share == 1
    assert same(net, source, but=table)
    centre = net.get_parameter(table)[15 * 15 // 2]  # of 15 x 15 offsets, and of 7 x 7
    torch.testing.assert_close(centre, source.get_parameter(table)[7 * 7 // 2], atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "lost, line",
    [
        ("pos_embed", "missing: pos_embed; .*choose the backbone"),
        ("cls_token", "missing: cls_token; .*choose the backbone"),
        ("blocks.0.norm2.bias", "missing: blocks.0.norm2.bias; .*choose the backbone"),
    ],
)
def test_a_tensor_of_the_body_counts_by_its_name(tmp_path, lost, line):
    net, before = vit(), vit()
    state = {n: t for n, t in vit(seed=1).state_dict().items() if n != lost}
    with pytest.raises(UsageError, match=line):
        loaded(tmp_path, net, state)
    if "norm" not in lost:  # nor does a share of the numbers make up for a position
        with pytest.raises(UsageError, match=line):
            loaded(tmp_path, net, state, min_match=0.5)
    assert same(net, before)


def test_positions_that_cannot_be_resampled_are_refused(tmp_path):
    state = {**vit(seed=1).state_dict(), "pos_embed": torch.zeros(1, 12, 16)}
    with pytest.raises(UsageError, match=r"pos_embed is \[1, 12, 16\], not \[1, 5, 16\]"):
        loaded(tmp_path, vit(), state)


@pytest.mark.parametrize("norm", ["frozen", "running"])
def test_averages_that_are_read_have_to_be_there(tmp_path, norm):
    source, net, before = conv(seed=1), conv(norm=norm), conv(norm=norm)
    state = {n: p.detach() for n, p in source.named_parameters()}
    for match in (1.0, 0.5):
        with pytest.raises(UsageError, match="lacks running averages.*features.1.running_mean"):
            loaded(tmp_path, net, state, min_match=match)
    assert same(net, before)
    theirs = timm_model("resnet18", 5, 3, 32, norm)
    state = {n: p.detach() for n, p in theirs.named_parameters()}
    with pytest.raises(UsageError, match="lacks running averages"):
        loaded(tmp_path, theirs, state)
    # Those of the batch are computed from it.
    assert not loaded(tmp_path, timm_model("resnet18", 5, 3, 32), state).missing


@pytest.mark.parametrize(
    "student, teacher, choices",
    [
        ("student.module.backbone.", "teacher.backbone.", ("student", "teacher")),
        ("state_dict/", "state_dict_ema/", ("state_dict", "state_dict_ema")),
        ("model/", "ema/module.", ("model", "ema")),
        ("module.encoder_q.", "module.encoder_k.", ("encoder_q", "encoder_k")),
        ("", "model_ema.", ("plain", "model_ema")),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_of_several_copies_one_is_chosen(tmp_path, student, teacher, choices, suffix):
    """A slash: a dict within the dict, which safetensors does not have."""
    copies, path = (vit(seed=1), vit(seed=2)), tmp_path / f"w{suffix}"
    held: dict = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "args": Namespace(a=1)}
    if suffix == ".safetensors":
        student, teacher, held = student.replace("/", "."), teacher.replace("/", "."), {}
    for copy, prefix in zip(copies, (student, teacher), strict=True):
        inside, _, before = prefix.rpartition("/")
        tensors = {before + n: t for n, t in copy.state_dict().items()}
        held |= {inside: tensors} if inside else tensors
    torch.save(held, path) if suffix == ".pth" else save_file(held, path)
    weights, net, before = read_weights(path), vit(), vit()
    with pytest.raises(UsageError, match="several copies of this network; choose one by") as told:
        load_into(net, weights)
    assert all(choice in str(told.value).partition("copy=")[2] for choice in choices)
    with pytest.raises(UsageError, match="holds no copy 'tutor'"):
        load_into(net, weights, copy="tutor")
    assert same(net, before)
    for copy, choice, other in zip(copies, choices, choices[::-1], strict=True):
        report = load_into(net, weights, copy=choice)
        assert same(net, copy) and f"its copy {choice} (not {other})" in str(report)


def test_copies_that_are_equal_need_no_choice(tmp_path):
    source, net = vit(seed=1), vit()
    report = loaded(tmp_path, net, {"model": source.state_dict(), "ema": source.state_dict()})
    assert same(net, source) and {report.copy, *report.others} == {"model", "ema"}


def test_a_checkpoint_of_lightning_or_of_a_compiled_module(tmp_path):
    source, net = conv(5, 1), conv(5)
    state = source.state_dict()
    inside = {f"net.backbone._orig_mod.{n}": t for n, t in state.items() if "head" not in n}
    head = {n.replace("head", "net.classifier"): t for n, t in state.items() if "head" in n}
    held = {"state_dict": inside | head, "epoch": 2, "best": np.float64(0.5), "hparams": {"a": 1}}
    report = loaded(tmp_path, net, held)
    assert same(net, source) and report.head == "the head (head) too"


def test_what_lightning_keeps_beside_the_weights(tmp_path, monkeypatch):
    """Hyperparameters of plain kinds are read, as data; any other is named in one line."""
    names = ("pytorch_lightning", "pytorch_lightning.utilities")
    modules = [types.ModuleType(name) for name in (*names, f"{names[1]}.parsing")]
    kind = type("AttributeDict", (dict,), {"__module__": modules[-1].__name__})
    vars(modules[-1])["AttributeDict"] = kind
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    source, net = conv(5, 1), conv(5)
    state = {f"model.{n}": t for n, t in source.state_dict().items()}
    plain = {"root": Path("/data/x"), "grid": np.arange(3), "more": kind(a=[1, kind(b=2)])}
    best = {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9)}}
    kept = {"epoch": 3, "pytorch-lightning_version": "2.6.6", "callbacks": best}
    report = loaded(tmp_path, net, {"state_dict": state, "hyper_parameters": plain, **kept})
    assert same(net, source) and report.share == 1 and report.copy == ""
    for value, name in ((OmegaConf.create({"a": 1}), "DictConfig"), (nn.ReLU, "ReLU")):
        held = {"state_dict": state, "hyper_parameters": {"value": value}}
        with pytest.raises(
            UsageError, match=rf"than tensors and plain values \(.*{name}\)"
        ) as told:
            loaded(tmp_path, net, held)
        assert "\n" not in str(told.value) and "save its state_dict() alone" in str(told.value)


def test_weights_of_an_installed_package(tmp_path, monkeypatch):
    source, net = conv(5, 1), conv(5)
    folder = installed(monkeypatch, tmp_path / "site", "carries_weights")
    with pytest.raises(UsageError, match="no weights at carries_weights; correct"):
        read_weights("carries_weights")
    saved(folder / "w.pth", source)
    weights = read_weights("carries_weights")
    load_into(net, weights)
    assert same(net, source) and weights.source == "carries_weights"
    assert weights.sha256 == read_weights(folder / "w.pth").sha256
    saved(folder / "v.pth", source)
    with pytest.raises(UsageError, match="carries_weights holds v.pth or w.pth; give"):
        read_weights("carries_weights")


def test_metadata_of_safetensors(tmp_path):
    source = conv(5, 1)
    state = {f"backbone.{n}": t for n, t in source.state_dict().items()}
    for told in ({"format": "pt", "author": "me"}, {"metalearn": "1.0 of another"}, {}):
        net = conv(5)
        save_file(state, tmp_path / "w.safetensors", metadata=told)
        weights = read_weights(tmp_path / "w.safetensors")
        assert load_into(net, weights).share == 1 and same(net, source) and not weights.images


def tied() -> nn.Module:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "head": nn.Linear(4, 3)})
    net["b"].weight = net["a"].weight
    return net


def test_tied_weights_are_saved_once(tmp_path):
    source = tied()
    save_model(source, str(tmp_path / "w.safetensors"))
    net = tied()
    load_into(net, read_weights(tmp_path / "w.safetensors"))
    assert same(net, source) and net["b"].weight is net["a"].weight
    # Under either name, and into a network that does not tie them.
    net = tied()
    loaded(tmp_path, net, {n: t for n, t in source.state_dict().items() if n != "a.weight"})
    assert same(net, source)
    loose = nn.ModuleDict({name: nn.Linear(4, 4 if name != "head" else 3) for name in source})
    load_into(loose, read_weights(tmp_path / "w.safetensors"))
    assert same(loose, source)
    with pytest.raises(UsageError, match="a.weight and b.weight are one tensor in this network"):
        loaded(tmp_path, tied(), {**source.state_dict(), "a.weight": torch.zeros(4, 4)})


@pytest.mark.parametrize(
    "source, net",
    [
        (lambda: vit(seed=1, depth=2), vit),
        (lambda: conv(5, 1, norm="frozen"), lambda: conv(5, norm="group")),
        (lambda: conv(5, 1, norm="frozen"), lambda: conv(5, norm="none")),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)),
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
        ),
    ],
)
def test_weights_of_a_larger_network_are_refused(tmp_path, source, net):
    with pytest.raises(UsageError, match="is of a larger network, with .*; choose the backbone"):
        loaded(tmp_path, net(), source().state_dict())


def test_numbers_that_are_no_weights(tmp_path):
    state = conv(5, 1).state_dict()
    codes = {n: (100 * t).to(torch.int8) for n, t in state.items()}
    with pytest.raises(UsageError, match="features.0.weight is int8, not float32"):
        loaded(tmp_path, conv(), codes)
    state["features.5.bias"][0] = torch.nan
    with pytest.raises(UsageError, match="features.5.bias with values that are not finite"):
        loaded(tmp_path, conv(), state)
    with pytest.raises(UsageError, match="has nothing of this network"):
        loaded(tmp_path, nn.ModuleDict({"head": nn.Linear(4, 3)}), {"odd.weight": torch.ones(2)})


def test_where_torchvision_has_its_head(tmp_path):
    name = "mobilenet_v3_small"  # in the middle of what is called classifier
    source = torchvision_model(name, 7, 3, 64)
    report = loaded(tmp_path, torchvision_model(name, 5, 3, 64), source.state_dict())
    assert report.share == 1 and "with 5 outputs (the file's has 7)" in report.head
    report = loaded(tmp_path, torchvision_model(name, None, 3, 64), source.state_dict())
    assert report.head == "no head" and len(report.unexpected) == 2


class Payload:
    """Unpickled as code, it would make a folder."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save(
        {"weight": torch.zeros(2), "run": Payload(str(tmp_path / "made"))}, tmp_path / "w.pth"
    )
    with pytest.raises(UsageError, match="holds more than tensors"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "made").exists()


def test_pins(tmp_path):
    path = saved(tmp_path / "w.pth", conv())
    digest = read_weights(path).sha256
    assert digest is not None and read_weights(path, digest[:8]).sha256 == digest
    assert read_weights(path, digest.upper()).sha256 == digest
    for wrong in ("0" * 64, digest[:7]):
        with pytest.raises(UsageError, match=f"has sha256 {digest}, not {wrong}"):
            read_weights(path, wrong)


def test_files_that_are_no_weights(tmp_path):
    for name, content, line in [
        ("text.pth", b"hello", "more than tensors|cannot be read"),
        ("empty.pth", b"", "cannot be read|more than tensors"),
        ("text.safetensors", b"hello hello", "is damaged"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=line):
            read_weights(tmp_path / name)
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    with pytest.raises(UsageError, match="holds no tensors"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(UsageError, match="no weights at .*gone.pth; correct backbone.weights"):
        read_weights(tmp_path / "gone.pth")
    with pytest.raises(UsageError, match="has that run finished"):
        read_weights(tmp_path)
    cut = saved(tmp_path / "cut.safetensors", conv()).read_bytes()[:-50]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    with pytest.raises(UsageError, match="is damaged"):
        read_weights(tmp_path / "cut.safetensors")
