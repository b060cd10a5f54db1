"""One run in one folder: whose it is, who holds it, and the weights at its end."""

import hashlib
import pickle
import signal
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file

from metalearn.errors import UsageError
from metalearn.runtime.device import torch_device
from metalearn.training.folder import (
    claim,
    config_hash,
    held,
    load_weights,
    read_config,
    save_weights,
)
from metalearn.types import Meta
from tests.preloaded import Process


def config(**changes) -> dict:
    return {
        "seed": 0,
        "name": None,
        "inner": {"_target_": "metalearn.inner.sgd", "rate": 0.1, "batch_size": None},
        "training": {"steps": 100, "clip_norm": None},
        "hidden": [40, 40],
        "run_dir": "runs/a",
        "resume": "auto",
        "tracker": {"mode": "offline", "tags": []},
        **changes,
    }


def test_the_hash_is_of_what_decides_the_result() -> None:
    same = config(run_dir="runs/b", resume="never", tracker={"mode": "online", "tags": ["x"]})
    assert config_hash(same) == config_hash(config())
    assert config_hash(dict(reversed(config().items()))) == config_hash(config())
    assert config_hash(yaml.safe_load(yaml.safe_dump(config()))) == config_hash(config())
    others = [
        config(seed=1),
        config(name="x"),
        config(hidden=[40]),
        config(training={"steps": 101, "clip_norm": None}),
        config(inner={"_target_": "metalearn.inner.sgd", "rate": 0.2, "batch_size": None}),
    ]
    assert len({config_hash(c) for c in [config(), *others]}) == 6


def test_the_same_run_claims_its_folder_again(tmp_path) -> None:
    folder = tmp_path / "runs" / "a"
    claim(folder, config())
    found = yaml.safe_load((folder / "config.yaml").read_text())
    assert found == config() and list(found) == list(config())
    written = (folder / "config.yaml").read_bytes()
    other_place = config(run_dir="elsewhere", tracker={"mode": "disabled", "tags": []})
    claim(folder, other_place)
    assert (folder / "config.yaml").read_bytes() == written
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"training": {"steps": 7, "clip_norm": None}}, "training.steps=100, not 7"),
        ({"training": {"steps": 100, "clip_norm": 1.0}}, "training.clip_norm=None, not 1.0"),
        ({"hidden": [40, 41]}, "hidden=[40, 40], not [40, 41]"),
        ({"seed": 0.0}, "seed=0, not 0.0"),
        ({"training": {"steps": 100}}, "training.clip_norm=None, not None"),
        ({"new": 3}, "new=None, not 3"),
    ],
)
def test_another_run_is_refused_by_the_first_difference(tmp_path, changes, what) -> None:
    claim(folder := tmp_path / "a", config())
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UsageError) as caught:
        claim(folder, config(run_dir="x", **changes))
    assert str(caught.value) == (
        f"{folder} holds a run with {what}; choose another run_dir, or use resume=never"
    )
    assert (folder / "config.yaml").read_bytes() == before


def test_never_takes_a_fresh_folder(tmp_path) -> None:
    (folder := tmp_path / "a").mkdir()
    taken = []
    for seed in (0, 0, 1):
        with held(folder, config(seed=seed), "never") as place:
            taken.append(place)
    assert taken == [folder, tmp_path / "a-2", tmp_path / "a-3"]
    with held(folder, config(), "auto") as place:
        assert place == folder
    seeds = [yaml.safe_load((place / "config.yaml").read_text())["seed"] for place in taken]
    assert seeds == [0, 0, 1]


def test_runs_at_once_with_never_get_a_folder_each(tmp_path) -> None:
    folder = tmp_path / "a"
    with ExitStack() as all_of_them:
        # As a process that has made its folder, and written nothing into it yet.
        all_of_them.enter_context(patch("metalearn.training.folder.claim"))
        places = [all_of_them.enter_context(held(folder, config(), "never")) for _ in range(4)]
    assert [place.name for place in places] == ["a", "a-2", "a-3", "a-4"]


def test_an_unknown_resume(tmp_path) -> None:
    with pytest.raises(UsageError) as caught, held(tmp_path / "a", config(), "yes"):
        pytest.fail("it was taken")
    assert str(caught.value) == "resume='yes' is not known; use auto or never"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("text", ["seed: [", "", "[1, 2]", "training: 3", "\0"])
def test_a_spoilt_configuration_is_one_line(tmp_path, text) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match="config.yaml is damaged") as caught:
        claim(tmp_path, config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["seed: 1", "backbone: 3", "backbone: {name: x}", "backbone: {_target_: 3}", "[1]", "7: {", ""],
)
def test_a_configuration_without_what_is_asked_for_is_one_line(tmp_path, text) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="config.yaml is damaged .*; put it back$"):
        read_config(path, "backbone._target_")
    with pytest.raises(UsageError, match="config.yaml is damaged .*; train anew$"):
        read_config(path.parent / "other/config.yaml", use="train anew")
    path.write_text("backbone: {_target_: metalearn.adaptation.head}")  # as it was called
    held = read_config(path, "backbone._target_")
    assert held["backbone"]["_target_"] == "metalearn.backbones.adaptation.head"


HOLD = """
import sys
from pathlib import Path
from metalearn.training.folder import held
with held(Path(sys.argv[1]), {}, "auto"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused(tmp_path) -> None:
    folder = tmp_path / "a"
    line = f"another process is running in {folder}; wait for it or choose another run_dir"
    with Process(HOLD, str(folder)) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as caught, held(folder, {}, "auto"):
            pytest.fail("both hold the folder")
        assert str(caught.value) == line
        other.send_signal(signal.SIGKILL)  # a killed process lets go
        other.communicate()
    with held(folder, {}, "auto"):
        with pytest.raises(UsageError), held(folder, {}, "auto"):
            pytest.fail("held twice")
        with held(tmp_path / "b", {}, "auto"):
            pass
    with held(folder, {}, "auto"):
        pass


def weights() -> Meta:
    g = torch.Generator().manual_seed(0)
    return Meta(
        init={"0.weight": torch.randn(3, 2, generator=g).T, "0.bias": torch.randn(3, generator=g)},
        hyper={"rate.0": torch.rand(5, generator=g)},
        buffers={"1.running_mean": torch.rand(3, generator=g).double()},
    )


def zeros(meta: Meta) -> Meta:
    return Meta(**{p: {n: torch.zeros_like(t) for n, t in meta[p].items()} for p in meta})  # type: ignore[typeddict-item]


def test_weights_come_back(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    digest = save_weights(path, weights())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(load_file(path)) == [
        "buffers/1.running_mean", "hyper/rate.0", "init/0.bias", "init/0.weight"
    ]  # fmt: skip
    loaded = load_weights(path, zeros(weights()))
    for part, tensors in weights().items():
        assert list(loaded[part]) == list(tensors)  # type: ignore[call-overload]
        for name, tensor in tensors.items():  # type: ignore[attr-defined]
            assert torch.equal(loaded[part][name], tensor)
            assert loaded[part][name].dtype == tensor.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    assert load_weights(path, zeros(weights()), digest).keys() == loaded.keys()
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UsageError, match="is not what the run wrote"):
        load_weights(path, zeros(weights()), digest)
    assert save_weights(tmp_path / "again", weights()) == digest


def test_weights_of_another_network(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, weights())
    like = weights()
    like["init"]["2.weight"] = torch.zeros(4)
    with pytest.raises(UsageError) as caught:
        load_weights(path, like)
    assert str(caught.value) == f"{path} has no init/2.weight [4]"
    like = weights()
    like["init"]["0.bias"] = torch.zeros(4)
    with pytest.raises(UsageError) as caught:
        load_weights(path, like)
    assert str(caught.value) == f"{path} has [3] for init/0.bias [4]"
    like = weights()
    like["hyper"] = {}
    with pytest.raises(UsageError) as caught:
        load_weights(path, like)
    assert str(caught.value) == f"{path} has weights that the network lacks: hyper/rate.0"


@pytest.mark.parametrize("how", ["truncated", "pickled", "empty"])
def test_weights_that_are_damaged(tmp_path, how) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, weights())
    content = {
        "truncated": path.read_bytes()[:-5],
        "pickled": pickle.dumps({"init/0.bias": 3}),
        "empty": b"",
    }
    path.write_bytes(content[how])
    with pytest.raises(UsageError) as caught:
        load_weights(path, weights())
    line = str(caught.value)
    assert line.startswith(f"{path} is damaged (") and "\n" not in line
    assert line.endswith("; train anew with resume=never")


def test_devices() -> None:
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError) as caught:
        torch_device("gpu")
    assert str(caught.value) == "device='gpu' is not known; use auto, cpu or cuda"
