"""Detection and segmentation through the usual commands."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command import metalearn

SMALL = (
    *("dataset=glyph_scenes", "dataset.size=32", "dataset.glyph=16", "dataset.classes=60"),
    *(
        "backbone.filters=4",
        "head.width=8",
        "tracker=disabled",
        "tracker.plots=false",
        "batching=loop",
    ),
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
    plots = f"tracker.plots={str(task == 'detection').lower()}"
    more = (f"task={task}", f"algorithm={algorithm}", "run_dir=run", plots)
    outcome = metalearn("train", *SMALL, *more)
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert {measure, f"{measure}_half_width", f"untrained_{measure}"} <= set(result)
    assert (result["task"], result["shots"], result["image_shape"]) == (task, 1, [1, 32, 32])
    again = metalearn("evaluate", "run=run", "evaluation.split=test")
    assert again.code == 0 and label in again.out
    (other,) = Path("run/evaluations").glob("*/result.json")
    assert json.loads(other.read_text())[measure] == result[measure]
    drawn = {"answers.png", "learning_curve.png", f"{measure}_by_step.png"}
    there = {path.name for path in Path("run").glob("*.png")}
    assert there == (drawn if task == "detection" else set())
    refused = metalearn("predict", "run=run", "images=.")
    assert f"of task={task}" in refused.mistake


def test_a_manifest_lists_the_episodes_of_scenes(workplace: Path) -> None:
    written = metalearn("data", "manifest", "task=segmentation", *SMALL, "out=episodes.json")
    assert written.code == 0, written.err
    listed = json.loads(Path("episodes.json").read_text())
    words = ("task=segmentation", "algorithm=protonet", *SMALL, "evaluation.untrained=false")
    outcome = metalearn("train", *words, "evaluation.manifest=episodes.json", "run_dir=run")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert (result["manifest_hash"], result["dataset_hash"]) == (
        listed["hash"],
        listed["dataset_hash"],
    )


SCENES = (*SMALL, "task=segmentation")
REFUSED = {
    ("dataset=glyph_scenes",): "use task=detection or task=segmentation, or dataset=glyphs",
    ("task=detection",): "glyphs has no boxes for task=detection; use dataset=glyph_scenes, or",
    ("task=segmentation",): "glyphs has no masks for task=segmentation; use dataset=glyph_scenes",
    (*SCENES, "loss=cross_entropy"): "use loss=segmentation",
    (*SCENES, "loss=detection"): "takes targets {boxes: [B, M, 4]",
    (*SCENES, "augmentation=standard"): "would move what boxes and masks mark",
    (*SCENES, "sampling=imbalanced"): "use sampling=uniform",
    (*SCENES, "adversarial=pgd"): "adversarial is not for task=segmentation",
    (*SCENES, "algorithm=r2d2"): "use algorithm=maml, anil, reptile or protonet",
    (*SCENES, "dataset.objects=0"): "1 to 64 objects",
    (*SCENES, "dataset.glyph=40"): "glyph=40 must be at most size=32",
    (*SCENES, "head.stride=0"): "head.stride=0 must be 1 or more",
    (*SCENES, "dataset.classes=24"): "are of classes beside the 3 of an episode, and val has 3",
}


@pytest.mark.parametrize("words", REFUSED, ids=[words[-1] for words in REFUSED])
def test_what_does_not_go_together_is_one_line(workplace: Path, words: tuple[str, ...]) -> None:
    assert REFUSED[words] in metalearn("train", "dataset.classes=60", *words).mistake


def test_what_knows_no_scenes_is_one_line(workplace: Path) -> None:
    words = (
        "dataset=glyph_scenes",
        "dataset.classes=60",
        "tracker=disabled",
        "tracker.plots=false",
    )
    for command, *more in (("pretrain",), ("compare",), ("select", "backbones=[conv4_untrained]")):
        assert "has pictures of several classes" in metalearn(command, *words, *more).mistake


def test_what_is_for_classification_alone_is_one_line(workplace: Path) -> None:
    told = "is for classification; metalearn train and pretrain take a task"
    for command, word in (("compare", "task=detection"), ("select", "+task=segmentation")):
        assert metalearn(command, word).mistake == f"{command} {told}"
    words = ("methods=[mine]", '+meta.overrides.mine=["task=detection"]')
    assert "meta.overrides.mine: compare is for" in metalearn("compare", *words).mistake


def test_a_head_or_loss_without_its_task_is_one_line(workplace: Path) -> None:
    few = ("dataset.classes=60", "tracker=disabled", "tracker.plots=false")
    outcome = metalearn("train", *few, "loss=detection")
    assert "takes targets {boxes: [B, M, 4]" in outcome.mistake
    outcome = metalearn("train", *few, "head=segmentation")
    assert "takes outputs [B, N] and classes [B], not" in outcome.mistake
    words = ("dataset=glyph_scenes", "task=segmentation")
    for other in ("linear", "detection"):
        assert "use head=segmentation" in metalearn("train", *few, *words, f"head={other}").mistake


def test_a_detector_of_base_classes_is_fine_tuned_as_in_tfa(workplace: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    same = (
        "task=detection",
        *SMALL[:4],
        "backbone=conv4",
        "head.width=8",
        "tracker=disabled",
        "tracker.plots=false",
    )
    same = (*same, "backbone.filters=4", "head.stride=4")
    base = ("training.batch_size=8", "training.steps=3", "optimizer.lr=0.01", "run_dir=base")
    narrow = ("precision=bf16", "training.channels_last=true")
    outcome = metalearn("pretrain", *same, *base, *narrow)
    assert outcome.code == 0, outcome.err
    told = json.loads(Path("base/result.json").read_text())
    assert (told["precision"], told["classes"]) == ("bf16", 40)
    assert 0 <= told["base_ap50"] <= 1 and told["pictures"] > 1
    words = (*same, *SMALL[-7:], "algorithm=anil", "head.cosine=true", "outer.optimizer.lr=0")
    words = (*words, "batching=loop", "training.meta_batch=1", "training.steps=1", "run_dir=tfa")
    outcome = metalearn("train", *words, "backbone.norm=frozen", "head.weights=base")
    assert outcome.code == 0, outcome.err
    theirs = load_file("base/backbone.safetensors")
    ours = load_file("tfa/weights.safetensors")
    for name in ("body.features.0.weight", "smooth.bias", "head.box_weight"):
        assert torch.equal(ours[f"init/{name}"], theirs[name])
    assert ours["init/head.weight"].shape == (4, 8) and theirs["head.weight"].shape == (41, 8)
    Path("base/backbone.safetensors").rename("base/moved")
    assert metalearn("evaluate", "run=tfa").code == 0  # it has its own weights
    Path("base/moved").rename("base/backbone.safetensors")
    use = "use the backbone, head.stride and head.width that it was trained with"
    words = (*words, "resume=never", "head.weights=base")
    assert use in metalearn("train", *words, "head.width=6", "backbone.norm=frozen").mistake
    assert "use backbone.norm=frozen" in metalearn("train", *words).mistake
    wrong = {
        "training.mixup=0.2": "training.mixup is not for task=detection; leave it out",
        "dataset=glyphs": "glyphs has no boxes for task=detection",
    }
    for word, line in wrong.items():
        kept = [w for w in (*same, *base) if word != "dataset=glyphs" or "glyph" not in w]
        kept = [w for w in kept if word != "dataset=glyphs" or not w.startswith("dataset.s")]
        assert line in metalearn("pretrain", *kept, "run_dir=other", word).mistake
    assert "head=cosine is for task=detection" in metalearn("pretrain", "head=cosine").mistake
