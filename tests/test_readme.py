"""Every command of README runs as it stands there, in a fresh folder, its budget cut; on stand-ins
for the data sets and the weights that have to be downloaded."""

import functools
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metalearn import data
from metalearn.backbones import timm_model
from metalearn.backbones.weights import Weights
from metalearn.commands.building import network
from metalearn.commands.building.config import compose, conf_folder
from tests.command import META_TRAINED, metalearn
from tests.own_pictures import glyph_folders
from tests.packages import installed

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

RANKS = "uv run torchrun --nproc-per-node=2 -m metalearn train algorithm=maml dataset=omniglot"
ELSEWHERE = {
    "pip install uv": "needs a package index",
    "pip install metalearn-torch": "needs a package index",
    "uv pip install --torch-backend=cpu metalearn-torch": "needs a package index",
    "uv run pytest": "runs this",
    "uv sync --group weights": "needs a package index",
    RANKS: "tests/training/test_ranks.py",
    "uv run --group bench metalearn bench engine": "tests/benchmarks",
}
"""What is not run here, and why, or where it is."""

SMALL = ["tracker=disabled", "tracker.plots=false", "device=cpu"]
TRAIN = [
    *SMALL, "batching=loop", "training.steps=1", "training.meta_batch=1", "training.queries=1",
    "training.validate_every=1", "evaluation.episodes=2", "evaluation.validation_episodes=1",
    "evaluation.untrained=false", "episodes.queries=1",
]  # fmt: skip
CUT: dict[str, list[str]] = {
    "train": TRAIN,
    "pretrain": [*SMALL, "training.steps=1", "training.batch_size=2", "evaluation.episodes=2",
                 "evaluation.validation_episodes=2", "episodes.queries=1", "held_out.val=0.02",
                 "held_out.test=0.02", "evaluation.train_images=2"],
    "compare": [*SMALL, "isolate=false", "episodes.queries=1", "evaluation.episodes=2",
                "evaluation.network_episodes=1", "evaluation.timed=1", "tuning.episodes=1",
                "tuning.network_episodes=1", "tuning.head_rates=[0.1]", "tuning.head_steps=[1]",
                "tuning.rates=[0.1]", "tuning.steps=[1]", "meta.seconds=0.1", META_TRAINED,
                "curves.episodes=1", "curves.severities=[1]", "curves.steps=1"],
    "select": [*SMALL, "sample.images=5", "sample.classes=5", "evaluation.episodes=2",
               "episodes.queries=1", "episodes.shots=[1]"],
    "evaluate": ["evaluation.episodes=2"],
    "try": ["device=cpu", "repeats=1", "dataset.channels=1", "dataset.size=16"],
}  # fmt: skip
OWN = {
    "backbone=resnet12": ["backbone.widths=[4,4,8,8]"],
    "images=imagenet": ["images.size=32"],
    "images.size=64": ["images.size=32"],
    "hydra/sweeper=optuna": ["hydra.sweeper.n_trials=1"],
    "robustness=[all,pgd]": [
        "episodes.shots=[1]",
        "backbone.depth=8",
        "sparsity=[0,0.9]",
        "methods=[nearest_centroid,maml]",
        "robustness=[fog,contrast,pgd]",
    ],
}
"""Further cuts, of a command that has such a word."""


def commands() -> list[str]:
    """The lines of README's indented blocks, and what stands in backquotes with `uv run`."""
    text = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S).replace("\\\n", " ")
    lines = re.findall(r"^    (\S.*)$", text, re.M)
    found = [part for line in lines for part in re.split(r"\s&&\s", re.sub(r"\s+#.*", "", line))]
    # What a list goes on with is indented too.
    starts = ("pip ", "uv ", "uvx ", "metalearn ", "python ", "git ", "wandb ")
    assert all(part.startswith(starts) for part in found), found
    inline = re.findall(r"`(uv run [^`]+)`", text)
    return [" ".join(part.split()) for part in (*found, *inline)]


def expanded() -> list[str]:
    """A command for each of the experiments that README names."""
    names = re.findall(r"^\| `(\w+)`.*\|$", README.partition("Each row is")[0], re.M)
    found = []
    for command in commands():
        each = names if "experiment=<name>" in command else [""]
        found += [command.replace("<name>", name) for name in each]
    return [c for c in dict.fromkeys(found) if c not in ELSEWHERE]


def glyphs_for(real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def stand_in(**_: Any) -> Any:
        return data.glyphs(classes=120, size=32)

    return stand_in


def drawn(node: dict[str, Any]) -> Weights:
    """Random weights in the place of those that a library would download."""
    own = {**node, "weights": None, "outputs": 10, "ways": 10}
    channels = 3 if "torchvision" in node["_target_"] else 1  # of images=imagenet, of glyphs
    module, _ = network.build_module(
        {n: v for n, v in own.items() if n in node}, (channels, 32, 32), 0, None
    )
    return Weights(dict(module.state_dict()), "DEFAULT", "0" * 64)


def carried(path: Path) -> None:
    """Random weights in the place of those of ImageNet that a package carries."""
    torch.save(timm_model("efficientnet_lite0", 10, 1, 32).state_dict(), path)


def run(command: str, *more: str) -> None:
    program, *words = shlex.split(command.removeprefix("uv run "))
    assert program == "metalearn", f"{command}: say in ELSEWHERE why it is not run"
    own = [cut for word, cuts in OWN.items() if word in words for cut in cuts]
    outcome = metalearn(*words, *CUT.get(words[0], []), *own, *more)
    assert outcome.code == 0, outcome.err


def plan_a_study() -> None:
    """The first study of README, with its runs cut."""
    study = yaml.safe_load(re.findall(r"^```yaml\n(overrides:.*?)^```", README, re.M | re.S)[0])
    study["overrides"] += [*TRAIN, "backbone.filters=4"]
    study["seeds"] = study["seeds"][:1]
    Path("study.yaml").write_text(yaml.safe_dump(study))
    run("uv run metalearn sweep plan study.yaml")


@pytest.fixture
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    for name in ("omniglot", "cifar_fs"):
        monkeypatch.setattr(data, name, glyphs_for(getattr(data, name)))
    monkeypatch.setattr(network, "_default", drawn)
    asked = getattr(request.node, "callspec", None)
    command = asked.params["command"] if asked else ""
    for package in re.findall(r"backbone\.weights=(\w+_pytorch_model)", command):
        carried(installed(monkeypatch, workplace / "site", package) / "weights.pth")
    classes, _ = glyph_folders(workplace, classes=2, shots=2, queries=0)
    classes.rename("classes")
    (workplace / "pictures").mkdir()
    shutil.copy(next(Path("classes").rglob("*.png")), "pictures/picture.png")
    return workplace


def test_nothing_is_left_out_without_a_reason() -> None:
    found = commands()
    assert len(found) >= 20 and not ELSEWHERE.keys() - set(found)
    assert any("experiment=<name>" in command for command in found)


@pytest.mark.parametrize("command", [c for c in expanded() if "<" not in c])
def test_it_runs(command: str, place: Path) -> None:
    one = command.startswith("uv run metalearn train") and "backbone=ensemble" not in command
    narrow = ["backbone.filters=4"] if one else []
    if command.startswith("uv run metalearn report"):
        run("uv run metalearn train dataset=cifar_fs backbone.filters=4")
    if command.startswith("uv run metalearn sweep"):
        plan_a_study()
    if command.startswith("uv run metalearn pull"):
        run("uv run metalearn train dataset=cifar_fs backbone.filters=4 run_dir=before")
        run("uv run metalearn publish before model")
    if "compare" in command and "methods=" not in command:
        narrow = ["methods=[untrained,nearest_centroid]"]
    run(command, *narrow)


@pytest.mark.parametrize("command", [c for c in expanded() if "<" in c])
def test_what_needs_a_run_before_it_runs_after_it(command: str, place: Path) -> None:
    if "runs/pretrain-<...>" in command:
        before = next(c for c in expanded() if c.startswith("uv run metalearn pretrain"))
        run(before, "run_dir=before")
        command = command.replace("runs/pretrain-<...>", "before")
    else:
        run("uv run metalearn train dataset=cifar_fs backbone.filters=4 run_dir=before")
        command = command.replace("runs/<folder>", "before")
    if "manifest=episodes.json" in command:
        manifest = next(c for c in expanded() if "data manifest" in c and "out=episodes.json" in c)
        run(manifest, "evaluation.episodes=3")
    assert "<" not in command, f"{command}: say what goes there"
    run(command)


def test_the_configuration_is_printed(place: Path) -> None:
    assert "`metalearn train --cfg job`" in README
    assert "algorithm:" in metalearn("train", "--cfg", "job").out
    assert compose([])["batching"] == "auto" and (conf_folder() / "sweep" / "wandb.yaml").exists()
