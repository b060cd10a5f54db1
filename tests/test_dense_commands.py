"""Detection and segmentation through the usual commands."""

import json
from pathlib import Path

import pytest

from tests.command import metalearn

SMALL = (
    *("dataset=glyph_scenes", "dataset.size=32", "dataset.glyph=16", "dataset.classes=60"),
    *("backbone.filters=4", "head.width=8", "tracker=disabled", "batching=loop"),
    *("training.steps=1", "training.meta_batch=1", "training.queries=1", "episodes.queries=2"),
    *("evaluation.episodes=2", "evaluation.validation_episodes=1", "episodes.ways=3"),
)


RUNS = {"detection": ("anil", "ap50", "nAP50"), "segmentation": ("protonet", "miou", "mean IoU")}


@pytest.mark.parametrize("task", RUNS)
def test_a_run_and_its_evaluation(workplace: Path, task: str) -> None:
    algorithm, measure, label = RUNS[task]
    if task == "detection":
        pytest.importorskip("pycocotools", reason="pycocotools is not installed")
        pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    outcome = metalearn("train", f"task={task}", f"algorithm={algorithm}", *SMALL, "run_dir=run")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert {measure, f"{measure}_half_width", f"untrained_{measure}"} <= set(result)
    assert (result["task"], result["shots"], result["image_shape"]) == (task, 1, [1, 32, 32])
    again = metalearn("evaluate", "run=run", "evaluation.split=test")
    assert again.code == 0 and label in again.out
    (other,) = Path("run/evaluations").glob("*/result.json")
    assert json.loads(other.read_text())[measure] == result[measure]
    assert Path("run/answers.png").read_bytes().startswith(b"\x89PNG")
    refused = metalearn("predict", "run=run", "images=.")
    assert f"of task={task}" in refused.mistake


def test_a_manifest_lists_the_episodes_of_scenes(workplace: Path) -> None:
    written = metalearn("data", "manifest", "task=segmentation", *SMALL, "out=episodes.json")
    assert written.code == 0, written.err
    words = ("task=segmentation", "algorithm=protonet", *SMALL, "evaluation.untrained=false")
    metalearn("train", *words, "run_dir=run")
    metalearn("train", *words, "evaluation.manifest=episodes.json", "run_dir=listed")
    ours, theirs = (json.loads(Path(f"{n}/result.json").read_text()) for n in ("run", "listed"))
    assert ours["manifest_hash"] == theirs["manifest_hash"]
    assert ours["miou"] == theirs["miou"]


SCENES = (*SMALL, "task=segmentation")
REFUSED = {
    ("dataset=glyph_scenes",): "use task=detection or task=segmentation, or dataset=glyphs",
    ("task=detection",): "glyphs has no boxes for task=detection; use dataset=glyph_scenes, or",
    ("task=segmentation",): "glyphs has no masks for task=segmentation; use dataset=glyph_scenes",
    (*SCENES, "loss=cross_entropy"): "use loss=segmentation",
    (*SCENES, "loss=detection"): "takes targets {boxes: [B, M, 4]",
    (*SCENES, "augmentation=standard"): "would move what boxes and masks mark",
    (*SCENES, "sampling=imbalanced"): "use sampling=uniform",
    (*SCENES, "algorithm=r2d2"): "use algorithm=maml, anil, reptile or protonet",
    (*SCENES, "dataset.objects=0"): "1 to 64 objects",
    (*SCENES, "dataset.glyph=40"): "glyph=40 must be at most size=32",
    (*SCENES, "head.stride=0"): "head.stride=0 must be 1 or more",
    (*SCENES, "dataset.classes=24"): "are of classes beside the 3 of an episode, and val has 3",
}


@pytest.mark.parametrize("words", REFUSED, ids=[words[-1] for words in REFUSED])
def test_what_does_not_go_together_is_one_line(workplace: Path, words: tuple[str, ...]) -> None:
    assert REFUSED[words] in metalearn("train", "dataset.classes=60", *words).mistake


def test_a_head_or_loss_without_its_task_is_one_line(workplace: Path) -> None:
    few = ("dataset.classes=60", "tracker=disabled")
    outcome = metalearn("train", *few, "loss=detection")
    assert "takes targets {boxes: [B, M, 4]" in outcome.mistake
    outcome = metalearn("train", *few, "head=segmentation")
    assert "takes outputs [B, N] and classes [B], not" in outcome.mistake
    words = ("dataset=glyph_scenes", "task=segmentation")
    for other in ("linear", "detection"):
        assert "use head=segmentation" in metalearn("train", *few, *words, f"head={other}").mistake
