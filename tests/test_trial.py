"""A network is tried on its inputs before anything is trained: one line, and no run folder."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.errors import reason_of
from tests.command import FAST, metalearn

HEADLESS = "takes what the network gives for logits, and outputs=null leaves"


class Wide(nn.Module):
    """A user's network, of more outputs than it is asked for."""

    def __init__(self, ways: int = 5):
        super().__init__()
        self.head = nn.Linear(256, ways + 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


class Silent(Wide):
    """One that fails without a word."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def own(folder: Path, name: str) -> list[str]:
    """The overrides that choose a class of this file as a user does."""
    (folder / "my" / "backbone").mkdir(parents=True)
    text = f"_target_: tests.test_trial.{name}\nways: ${{outputs}}\n"
    (folder / "my" / "backbone" / "mine.yaml").write_text(f"defaults: [_weights]\n{text}")
    return ["backbone=mine", f"hydra.searchpath=[file://{folder}/my]"]


def train(*overrides: str):
    """Conv-4 with few filters, or another backbone."""
    other = any(word.startswith(("backbone=", "backbone.filters=")) for word in overrides)
    fast = [word for word in FAST if not (other and word.startswith("backbone."))]
    return metalearn("train", *fast, "run_dir=run", *overrides)


@pytest.mark.parametrize(
    "overrides, line",
    [
        ("outputs=null", f"algorithm=maml {HEADLESS}"),
        ("outputs=null backbone.filters=5", f"algorithm=maml {HEADLESS}"),
        ("outputs=null algorithm=anil", f"algorithm=anil {HEADLESS}"),
        ("backbone.ways=3", "backbone.ways=3, but outputs=5; leave out backbone.ways"),
        ("backbone.ways=7", "backbone.ways=7, but outputs=5; leave out backbone.ways"),
        ("algorithm=protonet backbone.ways=3", "backbone.ways=3, but outputs=null"),
        ("backbone.channels=7", "Conv4 cannot take .*; leave out backbone.channels=7"),
        ("backbone.size=99", "Conv4 cannot take .*: addmm: .*; leave out backbone.size=99"),
        ("backbone=mlp backbone.inputs=7", "MLP cannot take .*; leave out backbone.inputs=7"),
        ("backbone=mlp backbone.hidden=[-3]", r"hidden=\[-3\] must be 1 or more each"),
        ("backbone=mlp backbone.hidden=[4,0]", r"hidden=\[4, 0\] must be 1 or more each"),
        ("backbone=resnet12 backbone.widths=[4,0,4,4]", "must be 4 numbers of 1 or more"),
        ("backbone=timm +backbone.options.layers=[1]", "backbone resnet18: .*; correct backbone"),
        (
            "episodes.ways=1 training.queries=1 dataset.size=16",
            "the batch norm features.10 would see one value",
        ),
        ("dataset.size=1000", "glyphs: needs .* a size of 8 to 512"),
        ("images.size=100000", "images.size=100000 must be 4096 or less"),
    ],
)
def test_what_does_not_fit_is_one_line(workplace: Path, overrides: str, line: str) -> None:
    told = train(*overrides.split()).mistake
    assert re.search(line, told), told
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "name, line",
    [
        ("Wide", r"the backbone gives \[7\] for one input, and is to have outputs=5"),
        ("Silent", r"Silent cannot take .*: AssertionError at `raise AssertionError` in test_"),
        ("train", "backbone train is no torch.nn.Module|backbone.ways is not known"),
    ],
)
def test_a_network_of_the_users(workplace: Path, name: str, line: str) -> None:
    told = train("dataset.size=16", *own(workplace, name)).mistake
    assert re.search(line, told), told
    assert not Path("run").exists()


def test_pre_training_is_tried_too(workplace: Path) -> None:
    small = ("dataset.classes=60", "dataset.size=16", "backbone.filters=4", "run_dir=run")
    told = metalearn("pretrain", *small, "backbone.channels=7").mistake
    assert "leave out backbone.channels=7" in told and not Path("run").exists()


def test_one_query_is_no_batch_for_norms_of_the_support_set(workplace: Path) -> None:
    one = ("dataset.size=16", "episodes.ways=1", "episodes.queries=1", "training.queries=1")
    one = (*one, "episodes.shots=2")
    assert "features.10 would see one value" in train(*one).mistake
    assert train(*one, "backbone.norm=support").code == 0


def test_the_result_names_the_network_of_a_library(workplace: Path) -> None:
    """With batch norms that hold their activation, and averages that follow the support sets."""
    options = "+backbone.options={layers:[1],channels:[8],stem_chs:4,stem_type:''}"
    chosen = ("backbone=timm", "backbone.name=resnetv2_50", options, "backbone.norm=running")
    outcome = train(*chosen, "dataset.size=16")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["backbone"] == "resnetv2_50" and result["norm_policy"] == "running"


def test_the_reason_of_an_error() -> None:
    assert reason_of(ValueError("one\ntwo")) == "one"
    assert reason_of(KeyError("a")) == "KeyError 'a'"
    assert reason_of(MemoryError()) == "not enough memory"
    assert reason_of(AssertionError()) == "AssertionError"
