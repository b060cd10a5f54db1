"""The loop of pre-training against a plain one, and the selection of weights."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metalearn.commands.building.config import compose
from metalearn.commands.pretrain import build
from metalearn.tracking import JsonLines, RunInfo, Tracker, read_records
from metalearn.training.classification import restore
from metalearn.training.loop import fit
from metalearn.training.stage import Position
from metalearn.training.validation import classified, few_shot

SMALL = [
    "dataset=glyphs", "dataset.classes=24", "dataset.size=16", "dataset.drawings=10",
    "backbone.filters=8", "held_out.val=0.2", "held_out.test=0.1", "training.batch_size=16",
    "training.steps=20", "training.record_every=1", "episodes.ways=3", "episodes.queries=2",
    "evaluation.validation_episodes=20",
    "tracker=disabled", "tracker.plots=false", "device=cpu", "run_dir=run",
]  # fmt: skip


def trained(folder: Path, *overrides: str):
    """A stage after training, where it stands, its network before, the scalars it recorded."""
    _, stage = build(compose([*SMALL, *overrides], "pretrain"))
    start, position = copy.deepcopy(stage.module), Position()
    with Tracker([JsonLines()]) as tracker:
        tracker.start(RunInfo("run", folder, {}, None, 0, stage.pace.steps))
        assert fit(stage, position, folder, tracker)
    records = [r for r in read_records(folder / "metrics.jsonl") if r["kind"] == "scalars"]
    return stage, position, start, records


@pytest.mark.parametrize("clip", [None, 0.5])
def test_twenty_steps_against_a_plain_loop(workplace, tmp_path: Path, clip: float | None) -> None:
    given = [] if clip is None else [f"training.clip_norm={clip}"]
    stage, position, module, records = trained(tmp_path, "training.select=last", *given)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    epoch = stage.images.epoch
    losses, rates = [], []
    module.train()
    for step, batch in enumerate(stage.images.batches(range(20))):
        rate = 0.05 * (step + 1) / epoch
        if step >= epoch:  # one epoch of warm-up
            rate = 0.05 * (1 + math.cos(math.pi * (step - epoch) / (20 - epoch))) / 2
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = F.cross_entropy(module(batch.x), batch.y)
        loss.backward()
        if clip:
            norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
            for p in module.parameters():
                p.grad *= min(1.0, clip / (norm.item() + 1e-6))
        optimizer.step()
        losses.append(loss.item())
        rates.append(rate)
    assert [r["loss"] for r in records] == pytest.approx(losses, rel=1e-4)
    assert [r["learning_rate"] for r in records] == pytest.approx(rates, rel=1e-12)
    for name, t in stage.best.items():
        torch.testing.assert_close(t, module.state_dict()[name], rtol=1e-3, atol=1e-5)
    assert position.best_step == 20


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_the_weights_of_the_best_validation_are_kept(workplace, tmp_path, ema: float) -> None:
    stage, position, _, records = trained(
        tmp_path, "training.select=accuracy", f"training.ema={ema}", "optimizer.lr=0.5"
    )
    validated = {r["step"]: r["held_out_accuracy"] for r in records if "held_out_accuracy" in r}
    epoch = stage.images.epoch
    assert list(validated) == [*range(epoch, 20, epoch), *([20] if 20 % epoch else [])]
    assert position.best_score == max(validated.values()) == validated[position.best_step]
    restore(stage.kept, stage.best)
    right, losses = classified(stage.forward, stage.kept, stage.split.val)
    assert right.mean() == position.best_score
    recorded = next(r for r in records if r["step"] == position.best_step)
    assert losses.mean() == pytest.approx(recorded["held_out_loss"], rel=1e-6)


def test_few_shot_selection_is_by_the_mean_over_shots(workplace, tmp_path) -> None:
    stage, position, _, _ = trained(tmp_path, "optimizer.lr=0.2")
    means: dict[int, list[float]] = {}
    for record in read_records(tmp_path / "metrics.jsonl"):
        if record["kind"] == "episodes":
            assert record["split"].startswith("val 3-way") and len(record["accuracy"]) == 20
            means.setdefault(record["step"], []).append(sum(record["accuracy"]) / 20)
    scores = {step: sum(pair) / 2 for step, pair in means.items()}
    assert position.best_score == pytest.approx(max(scores.values()), abs=1e-12)
    assert scores[position.best_step] == max(scores.values())
    restore(stage.kept, stage.best)
    again = few_shot(stage.forward, stage.kept, stage.few_shot, "val", 20)
    assert [values.mean() for values in again] == pytest.approx(means[position.best_step])


def test_test_classes_are_never_asked_for(workplace, tmp_path, monkeypatch) -> None:
    from metalearn.data import ImageDataset

    asked = set()
    for name in ("images", "images_on"):
        inner = getattr(ImageDataset, name)

        def noted(self, *arguments, inner=inner, place=name == "images_on"):
            asked.add(arguments[int(place)])
            return inner(self, *arguments)

        monkeypatch.setattr(ImageDataset, name, noted)
    trained(tmp_path)
    assert asked == {"train", "val"}


def test_a_loss_that_is_not_finite_ends_the_run(workplace, tmp_path) -> None:
    from metalearn.errors import UsageError

    with pytest.raises(UsageError, match="not finite at step .*; lower optimizer.lr"):
        trained(tmp_path, "optimizer.lr=1e30")
