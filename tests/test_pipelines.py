"""Every command of experiments/pipelines runs, each pipeline from its first to its last, its budget
cut, on stand-ins for CIFAR-FS and for weights that have to be downloaded."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from metalearn.backbones.weights import Weights
from metalearn.commands.building import network
from tests.command import metalearn
from tests.test_readme import CUT, place

__all__ = ["place"]  # a fixture of this module too

PAGE = Path(__file__).parents[1] / "experiments" / "pipelines" / "README.md"
NARROW = {
    "resnet12": ["backbone.widths=[2,2,4,4]"],
    "wide_resnet": ["backbone.width=1"],
    "timm": ["+backbone.options.depth=1", "+backbone.options.embed_dim=12", "images.size=32"],
}
MORE = {"compare": ["episodes.shots=[1]", "tuning.prototype_steps=1", "tuning.copies=1",
                    "tuning.prototype_rates=[0.001]", "linear_probe.steps=1"]}  # fmt: skip


def commands() -> list[str]:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    return [" ".join(line.split()) for line in re.findall(r"^    (metalearn .*)$", text, re.M)]


def needed(command: str) -> list[str]:
    """The runs that it starts from."""
    return re.findall(r"(?:backbone\.weights|distillation\.teacher)=(runs/\w+)", command)


def made(command: str) -> str:
    (folder,) = re.findall(r" run_dir=(runs/\w+)", command)
    return folder


def test_a_run_is_there_before_it_is_used() -> None:
    there: set[str] = set()
    for command in commands():
        assert there.issuperset(needed(command)), command
        assert made(command) not in there
        there.add(made(command))
    assert len(there) == 12


LAST = [c for c in commands() if not any(made(c) in needed(other) for other in commands())]


def dino(node: dict[str, Any]) -> Weights:
    """Random weights in the place of timm's."""
    own = {name: value for name, value in node.items() if name not in ("weights", "outputs")}
    module, _ = network.build_module({**own, "outputs": None}, (3, 32, 32), 0, None)
    return Weights(dict(module.state_dict()), "DEFAULT", "0" * 64)


@pytest.mark.slow
@pytest.mark.parametrize("command", LAST, ids=made)
def test_a_pipeline_runs(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_default", dino)
    by_folder = {made(each): each for each in commands()}

    def run(command: str) -> None:
        for before in needed(command):
            run(by_folder[before])
        _, *words = shlex.split(command)
        (backbone,) = re.findall(r" backbone=(\w+)", command)
        cut = [*CUT[words[0]], *MORE.get(words[0], []), *NARROW[backbone]]
        outcome = metalearn(*words, *cut)
        assert outcome.code == 0, (command, outcome.err)

    run(command)
