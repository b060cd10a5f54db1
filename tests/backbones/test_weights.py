"""Weights from files: what is matched, refused, pinned, and never executed."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metalearn.algorithms import MAML
from metalearn.backbones import Conv4, timm_model, torchvision_model
from metalearn.backbones.weights import load_into, read_weights
from metalearn.errors import UsageError
from metalearn.training.folder import save_weights
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
