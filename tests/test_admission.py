"""Strict selection: what `backbone.admit` refuses, each criterion in a line, and what it takes."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metalearn.backbones import Conv4
from metalearn.backbones.admission import Admission
from metalearn.backbones.defaults import CIFAR10
from metalearn.backbones.weights import Report, Weights
from metalearn.data import TensorDataset
from metalearn.episodes import FewShotEpisodes, Manifest
from metalearn.errors import UsageError
from metalearn.evaluation.admission import check_above_untrained
from tests.command import FAST, metalearn


def saved(place: Path) -> str:
    """Random weights as safetensors and as torch's, and the sha256 of the first."""
    torch.manual_seed(1)
    state = Conv4(ways=5, channels=1, size=28, filters=4, norm="frozen").state_dict()
    save_file(state, place / "w.safetensors")
    torch.save(state, place / "w.pth")
    return hashlib.sha256((place / "w.safetensors").read_bytes()).hexdigest()


REFUSED = {
    "backbone.admit=strict": "its sha256 is not known beforehand; add backbone.sha256={sha}",
    "backbone.admit=strict backbone.sha256={sha}": "its licence is not known; name it by "
    "backbone.licence=..., where that is so, or set backbone.admit.licences",
    "backbone.admit=strict backbone.sha256={sha} backbone.licence=CC-BY-NC-4.0": "is CC-BY-NC-4.0;",
    "backbone.admit={{formats:[safetensors]}} backbone.weights=w.pth": "its format is weights-only",
    "backbone.admit={{above_untrained:20}} backbone.licence=MIT backbone.sha256={sha}": "weights, ",
    "backbone.admit=loose": "backbone.admit=loose must be strict, null, or {{criterion: value}}",
    "backbone.admit={{pined:false}}": "backbone.admit.pined is not known to",
    "backbone.admit={{match:2}}": "backbone.admit.match=2 must be a share, 0 to 1",
    "backbone.admit={{above_untrained:1}}": "must be 0, or 2 episodes or more",
    "backbone.licence=3": "backbone.licence=3 must be text, or null",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_refusal_names_its_criterion(given: str, workplace: Path) -> None:
    sha = saved(workplace)
    words = ["backbone.weights=w.safetensors", *given.format(sha=sha).split()]
    told = metalearn("train", *FAST, "backbone=conv4", "run_dir=run", *words).mistake
    assert REFUSED[given].format(sha=sha) in told
    assert not Path("run").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_what_meets_every_criterion_is_used(command: str, workplace: Path) -> None:
    sha = saved(workplace)
    words = [
        *(
            "backbone=conv4",
            "backbone.weights=w.safetensors",
            "run_dir=run",
            "tracker=disabled",
            "tracker.plots=false",
        ),
        *(f"backbone.sha256={sha}", "backbone.licence=MIT", "device=cpu"),
    ]
    if command == "train":
        words += FAST
    else:
        words += [
            *("dataset.classes=60", "backbone.filters=4", "isolate=false", "episodes.shots=[1]"),
            *("methods=[nearest_centroid]", "evaluation.episodes=2", "evaluation.timed=1"),
        ]
    assert "is not admitted: nearest centroid" in (
        metalearn(command, *words, "backbone.admit={above_untrained:5}").mistake
    )
    ran = metalearn(command, *words, "backbone.admit={above_untrained:0}")
    assert ran.code == 0, ran.err


def test_known_files_need_no_word_and_a_part_is_told() -> None:
    strict = Admission()
    known = Weights({}, "resnet20.th", CIFAR10[20].sha256, form="weights-only")
    strict.check_file(known, None, None)
    own = {"backbone": {}, "classes": 64, "steps": 9}
    made = Weights({}, "runs/mine", "0" * 64, told=own, form="safetensors")
    strict.check_file(made, "0" * 8, None)
    with pytest.raises(UsageError, match="its format is library"):
        strict.check_file(Weights({}, "torchvision"), None, "MIT")
    whole = Report("f", None, matched=list("abc"), missing=[], unexpected=[], head="", share=1.0)
    strict.check_match(whole)
    part = Report("f", None, matched=list("abc"), missing=["d"], unexpected=[], head="", share=1.0)
    with pytest.raises(UsageError, match="75.0% of the network's tensors.*backbone.admit.match"):
        strict.check_match(part)
    Admission(match=0.75).check_match(part)


class Keeps(nn.Module):
    """The first of two numbers, or of the numbers turned to one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.scale * x, torch.ones_like(x)], 1)


def test_better_than_random_is_measured_in_pairs() -> None:
    labels = torch.arange(80) % 4
    x = labels[:, None] + torch.linspace(-0.1, 0.1, 80)[:, None]
    data = TensorDataset(x, labels, {"train": [], "val": range(4), "test": []})
    manifest = Manifest(FewShotEpisodes(data, 4, 1, 5), "val", 20)
    cpu = torch.device("cpu")
    found = check_above_untrained(Keeps(1.0), Keeps(0.0), manifest, cpu, "w")
    assert found.count == 20 and found.mean > 0.2
    with pytest.raises(UsageError, match="w is not admitted: nearest .* \\+0.0 ± 0.0 points"):
        check_above_untrained(Keeps(1.0), Keeps(1.0), manifest, cpu, "w")
    with pytest.raises(UsageError, match="w is not admitted: nearest .* -"):
        check_above_untrained(Keeps(0.0), Keeps(1.0), manifest, cpu, "w")
