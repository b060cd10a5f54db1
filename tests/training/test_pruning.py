"""Runs that prune: the same bits after a resume, zeros in what they leave, mistakes in one line."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from metalearn.functional.masks import MASK
from tests.command import FAST, metalearn

STEPS = [*FAST, "algorithm.steps=1", "training.steps=4", "training.validate_every=1",
         "training.checkpoint_every=2", "training.keep=10", "evaluation.episodes=2"]  # fmt: skip


def weights(folder: Path):
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize(
    "pruning",
    [
        ["pruning=magnitude", "pruning.every=1", "pruning.end=3"],
        pytest.param(["pruning=snip"], marks=pytest.mark.slow),
        ["pruning=iht", "algorithm=reptile", "pruning.turns=1", "pruning.end=4"],
    ],
    ids=lambda asked: asked[0],
)
def test_a_resumed_run_prunes_the_same(pruning: list[str], workplace: Path) -> None:
    asked = ["train", *STEPS, *pruning, "pruning.sparsity=0.75"]
    assert metalearn(*asked, "run_dir=a").code == 0
    whole = weights(workplace / "a")
    masks = {n.partition(MASK)[2]: t for n, t in whole.items() if MASK in n}
    assert "head.weight" not in masks and len(masks) == 4
    total, kept = (
        sum(f(m) for m in masks.values()) for f in (lambda m: m.numel(), lambda m: m.sum())
    )
    assert float(kept) == pytest.approx(0.25 * total, abs=2)
    for name, mask in masks.items():
        assert whole[f"init/{name}"][mask == 0].abs().sum() == 0
    result = json.loads((workplace / "a" / "result.json").read_text(encoding="utf-8"))
    assert result["sparsity"] == pytest.approx(0.75, abs=0.01)

    shutil.copytree("a", "b")
    for name in ("result.json", "weights.safetensors"):
        (workplace / "b" / name).unlink()
    for folder in sorted((workplace / "b" / "checkpoints").glob("step-*")):
        if int(folder.name[5:]) > 2:
            shutil.rmtree(folder)
    again = metalearn(*asked, "run_dir=b")
    assert again.code == 0 and "resuming b at step 2" in again.out
    resumed = weights(workplace / "b")
    assert all((resumed[name] == t).all() for name, t in whole.items())
    assert metalearn("evaluate", "run=a").code == 0


def test_fewer_channels_are_saved_and_evaluated(workplace: Path) -> None:
    asked = ["train", *STEPS, "pruning=channels", "run_dir=small"]
    assert metalearn(*asked).code == 0
    assert weights(workplace / "small")["init/features.0.weight"].shape[0] == 2
    assert metalearn("evaluate", "run=small").code == 0
    # The weights of a smaller network are not those of a larger one, nor the other way.
    wrong = metalearn("train", *STEPS, "backbone.weights=small", "run_dir=c")
    assert "small" in wrong.mistake and "features.0.weight" in wrong.mistake


@pytest.mark.parametrize(
    "asked, told",
    [
        (["pruning=magnitude", "pruning.sparsity=1.0"],
         "pruning.sparsity=1.0 must be 0 or more, and below 1"),
        (["pruning=magnitude", "pruning.end=9", "training.steps=4"],
         "pruning reaches its sparsity before meta-step 9, but training.steps=4; use "
         "pruning.end=2"),
        (["pruning=snip", "algorithm=reptile"],
         "pruning=snip needs the gradient of a loss, which gradient=displacement is not; use "
         "pruning=magnitude or iht"),
        (["pruning=magnitude", "gradient=learn2learn"],
         "pruning: gradient=learn2learn runs on another package's engine, which knows of no masks; "
         "use gradient=adjoint, or pruning=channels"),
        (["pruning=channels", "backbone.norm=group"],
         "pruning=channels finds no convolution whose channels one other layer alone reads (group "
         "norm and attention read several at once); use pruning=magnitude"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(asked: list[str], told: str, workplace: Path) -> None:
    assert metalearn("train", *FAST, *asked).mistake == told
