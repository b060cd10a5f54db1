"""`metalearn pretrain` in real processes, killed by real signals, ends in the same bits."""

import hashlib
import io
import json
import signal
from pathlib import Path

import pytest
from rich.console import Console

from metalearn.commands import pretrain
from metalearn.commands.building.config import compose
from tests.training.test_kill import cache, checkpoints, records, signalled

__all__ = ["cache"]  # a fixture of this module too

BUDGET = [
    "dataset=glyphs", "dataset.classes=24", "dataset.size=16", "dataset.drawings=10",
    "held_out.val=0.1", "held_out.test=0.1", "training.batch_size=16", "training.steps=40",
    "training.record_every=1", "training.checkpoint_every=5", "training.validate_every=2",
    "episodes.ways=3", "episodes.queries=2", "evaluation.episodes=10", "training.keep=3",
    "evaluation.validation_episodes=5", "tracker=disabled", "tracker.plots=false", "device=cpu",
]  # fmt: skip

RUNS = {
    "plain": ["backbone.filters=8"],
    # Everything that a step draws, and everything that a checkpoint has to hold.
    "everything": [
        "backbone=resnet12", "backbone.widths=[4,4,8,8]", "backbone.drop_rate=0.2",
        "precision=bf16", "training.ema=0.9", "training.mixup=0.4", "training.cutmix=1",
        "training.rotation=0.5", "training.label_smoothing=0.1", "training.channels_last=true",
        "augmentation=standard", "seed=3", "training.clip_norm=5", "training.decay_norms=false",
        "training.workers=1", "manifold_mixup.alpha=2", "distillation.teacher=teacher",
    ],
    "adamw": ["backbone.filters=8", "pretrain/optimizer=adamw", "training.select=last"],
}  # fmt: skip


def command(name: str, folder: Path) -> list[str]:
    return [*BUDGET, *RUNS[name], f"run_dir={folder}"]


def here(overrides: list[str]) -> tuple[float | None, str]:
    printed = Console(file=io.StringIO(), width=200)
    score = pretrain.run(compose(overrides, "pretrain"), printed)
    return score, printed.file.getvalue()  # type: ignore[attr-defined]


def told(folder: Path) -> dict:
    """The result without its times and places."""
    result = json.loads((folder / "result.json").read_text())
    digest = hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest()
    assert result["weights_sha256"] == digest
    for name in ("seconds", "images_per_second", "peak_memory_bytes"):
        assert result.pop(name) > 0
    for name in ("commit", "weights", "command"):
        result.pop(name)
    return result


def known(folder: Path) -> list[dict]:
    """The records, of which a summary holds times too."""
    return [r for r in records(folder) if r["kind"] != "summary"]


def check(whole: Path, broken: Path) -> None:
    assert told(broken) == told(whole)
    assert known(broken) == known(whole)
    scalars = [r["step"] for r in known(broken) if r["kind"] == "scalars"]
    assert scalars == list(range(1, 41))
    assert (broken / "episodes.csv").read_bytes() == (whole / "episodes.csv").read_bytes()


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of "everything"."""
    monkeypatch.chdir(tmp_path)
    here([*BUDGET, "backbone.filters=4", "training.steps=1", "run_dir=teacher"])


@pytest.mark.slow
def test_sigkill_then_sigterm_then_the_end(tmp_path: Path, teacher: None) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    want, _ = here(command("everything", whole))
    argv = command("everything", broken)

    code, _, err = signalled(argv, signal.SIGKILL, at=12, job="pretrain")
    assert code == -signal.SIGKILL, err
    cut = checkpoints(broken)[-1]
    assert 10 <= cut < 40 and not (broken / "result.json").exists()

    code, out, err = signalled(argv, signal.SIGTERM, at=cut + 3, job="pretrain")
    assert code == 128 + signal.SIGTERM and "Traceback" not in err, err
    assert f"resuming {broken} at step {cut}" in out.splitlines()
    stopped = checkpoints(broken)[-1]
    assert cut + 3 <= stopped < 40
    line = (
        f"stopped at step {stopped} of 40 after a checkpoint; the same command goes on from there"
    )
    assert out.splitlines()[-1] == line

    score, printed = here(argv)
    assert f"resuming {broken} at step {stopped}" in printed and score == want
    check(whole, broken)

    # A finished run is shown and not trained again.
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    again, printed = here(command("everything", whole))
    assert again == want
    assert f"{whole} has finished before; resume=never trains anew in a fresh folder" in printed
    assert f"{told(whole)['accuracy']:.2%}" in printed and "3-way 1-shot" in printed
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_twice_and_stopped(tmp_path: Path, name: str, teacher: None) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    here(command(name, whole))
    argv = command(name, broken)
    assert signalled(argv, signal.SIGKILL, 3, "pretrain")[0] == -signal.SIGKILL
    assert signalled(argv, signal.SIGKILL, 27, "pretrain")[0] == -signal.SIGKILL
    assert signalled(argv, signal.SIGTERM, 34, "pretrain")[0] == 128 + signal.SIGTERM
    here(argv)
    check(whole, broken)
