"""From a configuration to a run, each of its objects is checked and made once."""

from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import save_file

from metalearn.backbones import Conv4
from metalearn.commands import pretrain
from metalearn.commands.building import arguments, network
from metalearn.commands.building.config import compose
from metalearn.commands.building.meta_training import build
from tests.command import FAST, metalearn


@pytest.fixture
def counted(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each node of a configuration is checked, and each weights file read."""
    seen: Counter = Counter()
    check, read = arguments.check_node, network.read_weights

    def checked(node, name: str) -> None:
        seen[name] += 1
        check(node, name)

    def noted(named, pin):
        seen["weights"] += 1
        return read(named, pin)

    for module in (arguments, network):
        monkeypatch.setattr(module, "check_node", checked)
    monkeypatch.setattr(network, "read_weights", noted)
    save_file(Conv4(5, 1, 4, 28).state_dict(), workplace / "w.safetensors")
    return seen


def test_a_run_of_meta_training(counted: Counter) -> None:
    augmented = ("augmentation=standard", "sampling=meta_dataset", "backbone=conv4")
    build(compose([*FAST, *augmented, "backbone.weights=w.safetensors", "images.channels=1"]))
    backbone = counted.pop("backbone")
    assert backbone == 2  # once before the data is there, once with its shape filled in
    assert set(counted.values()) == {1}
    assert {"algorithm", "gradient", "inner", "loss", "head", "adaptation"} < set(counted)
    assert {"sampling.sizes", "augmentation.query", "outer.schedule", "weights"} < set(counted)


def test_a_run_of_pre_training(counted: Counter) -> None:
    small = ("dataset.classes=60", "dataset.size=28", "backbone.filters=4")
    config = compose([*small, "backbone.weights=w.safetensors", "images.channels=1"], "pretrain")
    pretrain.build(config)
    assert counted.pop("backbone") == 2
    assert counted == {"dataset": 1, "optimizer": 1, "schedule": 1, "weights": 1}


def test_a_comparison_reads_its_weights_to_plan_to_tell_and_for_each_method(
    counted: Counter,
) -> None:
    small = ("dataset.classes=60", "backbone.filters=4", "episodes.shots=[1]", "isolate=false")
    fast = (
        "evaluation.episodes=4",
        "evaluation.network_episodes=1",
        "tracker=disabled",
        "tracker.plots=false",
    )
    given = ("backbone.weights=w.safetensors", "images.channels=1", "methods=[nearest_centroid]")
    outcome = metalearn("compare", *small, *fast, *given, "norm=group", "run_dir=run")
    assert outcome.code == 0, outcome.err
    assert counted["weights"] == 3
