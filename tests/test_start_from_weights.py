"""`backbone.weights=`: what a run starts from, expects of its images, and is pinned to."""

import hashlib
import json
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from metalearn.backbones import CifarResNet, Conv4, torchvision_model
from metalearn.backbones.defaults import CIFAR10, MIRROR
from metalearn.commands.building.config import compose
from metalearn.commands.building.network import build_module, find_weights, with_weights
from metalearn.data.paths import data_folder
from metalearn.errors import UsageError
from tests.command import FAST, metalearn
from tests.tasks import network


def conv(seed: int) -> Conv4:
    return network(lambda: Conv4(9, 1, 4, 16, "stride"), seed, dtype=torch.float32)


def saved(path: Path, seed: int = 0) -> Path:
    told = {"images": {"size": 16, "channels": 1, "mean": [0.25], "std": [0.5]}}
    save_file(conv(seed).state_dict(), path, metadata={"metalearn": json.dumps(told)})
    return path


def train(*overrides: str):
    return metalearn("train", *FAST, "run_dir=run", "outer.optimizer.lr=0", *overrides)


def test_a_run_starts_from_a_file_and_keeps_what_it_says(workplace: Path) -> None:
    path = saved(workplace / "w.safetensors")
    outcome = train(f"backbone.weights={path}", "training.steps=1")
    assert outcome.code == 0, outcome.err
    assert "16 of 16 tensors matched, 100.0% of the numbers of the body" in outcome.out
    assert "head (head) is new, with 5 outputs (the file's has 9)" in outcome.out
    result = json.loads(Path("run/result.json").read_text())
    assert result["starting_weights"] == str(path) and result["adaptation"] is None
    held = yaml.safe_load(Path("run/config.yaml").read_text())
    assert held["images"] == {"size": 16, "channels": 1, "mean": [0.25], "std": [0.5]}
    assert held["backbone"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    weights = load_file("run/weights.safetensors")
    want = {n: t for n, t in conv(0).state_dict().items() if "head" not in n}
    for name, tensor in want.items():  # the outer rate is 0
        torch.testing.assert_close(weights[f"init/{name}"], tensor, rtol=0, atol=0)


def test_what_is_given_goes_before_what_the_file_says(workplace: Path) -> None:
    path = saved(workplace / "w.safetensors")
    config = compose([*FAST, f"backbone.weights={path}", "images.mean=[0.0]", "images.size=20"])
    images = with_weights(config)[0]["images"]
    assert images == {"size": 20, "channels": 1, "mean": [0.0], "std": [0.5]}


def test_what_was_chosen_for_the_task_stands_in_the_result(workplace: Path) -> None:
    chosen = ("adaptation=last_k", "adaptation.k=2", "head=cosine", "loss=label_smoothed")
    outcome = train(*chosen)
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["adaptation"] == "last_k, k 2, outer all"
    assert result["head"] == "cosine, scale 10.0"
    assert result["loss_function"] == "label_smoothed, smoothing 0.1"
    assert "last_k, k 2, outer all" in outcome.out


def test_other_weights_under_the_same_name_are_refused_on_resume(workplace: Path) -> None:
    path = saved(workplace / "w.safetensors")
    assert train(f"backbone.weights={path}").code == 0
    saved(path, seed=1)
    line = train(f"backbone.weights={path}").mistake
    assert "holds a run with backbone.sha256=" in line


def test_evaluate_needs_the_file_no_more(workplace: Path) -> None:
    path = saved(workplace / "w.safetensors")
    assert train(f"backbone.weights={path}").code == 0
    before = json.loads(Path("run/result.json").read_text())
    path.unlink()
    outcome = metalearn("evaluate", "run=run")
    assert outcome.code == 0, outcome.err
    (again,) = Path("run/evaluations").glob("*/result.json")
    after = json.loads(again.read_text())
    assert after["accuracy"] == before["accuracy"]
    assert after["weights_sha256"] == before["weights_sha256"]


def test_a_run_goes_on_from_another_run(workplace: Path) -> None:
    first = metalearn("train", *FAST, "run_dir=first")
    assert first.code == 0, first.err
    outcome = train("backbone.weights=first")
    assert outcome.code == 0 and "the head (head) too" in outcome.out
    ours, theirs = load_file("run/weights.safetensors"), load_file("first/weights.safetensors")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["backbone.weights=gone.pth"], "no weights at gone.pth; correct backbone.weights"),
        (["backbone.weights=DEFAULT"], "has no DEFAULT weights; name a file"),
        (["backbone.weights=w.safetensors", "backbone.sha256=00000000"], "has sha256"),
        (["backbone.weights=3"], "backbone.weights=3 must be text, or null"),
        (["backbone.match=2"], "backbone.match=2 must be a share, 0 to 1"),
        (["backbone.weights=other.safetensors"], "choose the backbone that it was saved from"),
        (["backbone=cifar_resnet", "backbone.depth=32", "backbone.weights=DEFAULT"], "use 20 and"),
    ],
)
def test_mistakes(workplace: Path, overrides: list[str], line: str) -> None:
    saved(workplace / "w.safetensors")
    save_file({"odd.weight": torch.zeros(3, 3)}, workplace / "other.safetensors")
    fast = [o for o in FAST if "filters" not in o or "backbone=cifar_resnet" not in overrides]
    assert line in metalearn("train", *fast, "run_dir=run", *overrides).mistake
    assert not Path("run").exists()


def test_the_default_of_cifars_resnets() -> None:
    data = data_folder()
    name = CIFAR10[20].name
    if data is None or not (data / "pretrained" / name).is_file():
        pytest.skip(f"no {name} in METALEARN_DATA or ../shared/data")
    node = compose(["backbone=cifar_resnet", "backbone.depth=20", "backbone.weights=DEFAULT"])
    weights = find_weights(node["backbone"])
    assert weights is not None and weights.sha256 == CIFAR10[20].sha256
    assert weights.images["size"] == 32 and weights.images["mean"] == [0.485, 0.456, 0.406]
    module, report = build_module(node["backbone"], (3, 32, 32), 0, weights)
    assert isinstance(module, CifarResNet) and report is not None and report.share == 1


def test_a_default_that_is_not_here_is_downloaded(workplace: Path, monkeypatch) -> None:
    """From a server of this machine; the real address is not reached in tests."""
    from tests.inputs.server import serving

    data = data_folder()
    known = CIFAR10[20]
    if data is None or not (data / "pretrained" / known.name).is_file():
        pytest.skip(f"no {known.name} in METALEARN_DATA or ../shared/data")
    content = (data / "pretrained" / known.name).read_bytes()
    (workplace / "empty").mkdir()
    monkeypatch.setenv("METALEARN_DATA", str(workplace / "empty"))
    node = compose(["backbone=cifar_resnet", "backbone.depth=20", "backbone.weights=DEFAULT"])
    assert MIRROR.startswith("https://")
    monkeypatch.setenv("METALEARN_CACHE", str(workplace / "cache"))
    with serving(content) as server:
        address = server.url.rpartition("/")[0]
        monkeypatch.setattr("metalearn.backbones.defaults.MIRROR", f"{address}/")
        weights = find_weights(node["backbone"])
    assert weights is not None and weights.sha256 == known.sha256


def test_torchvisions_default_comes_from_its_cache(workplace: Path, monkeypatch) -> None:
    """The name carries the first digits of the sha256, which torchvision checks."""
    import torchvision

    best = torchvision.models.ResNet18_Weights.DEFAULT
    cache = workplace / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    source = torchvision_model("resnet18", 1000, 3, 224)
    torch.save(source.state_dict(), cache / best.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(workplace))
    node = compose(["backbone=torchvision", "backbone.weights=DEFAULT"])["backbone"]
    weights = find_weights(node)
    assert weights is not None and weights.images["size"] == 224
    assert weights.images["std"] == [0.229, 0.224, 0.225]
    module, report = build_module(node, (3, 64, 64), 1, weights)
    assert report is not None and report.share == 1
    assert torch.equal(module.get_parameter("conv1.weight"), source.conv1.weight)


def test_without_cache_or_network_it_is_one_line(workplace: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(workplace))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(urllib.request, "_opener", None)  # made once, with the proxies of then
    node = compose(["backbone=torchvision", "backbone.weights=DEFAULT"])["backbone"]
    with pytest.raises(UsageError, match="cannot be had .* name it by backbone.weights=<file>"):
        find_weights(node)
