"""How many threads make the episodes, and a resume, change neither a weight nor the manifest."""

import json
from pathlib import Path

from tests.command import FAST, metalearn

SETTINGS = (
    *FAST,
    "training.steps=6",
    "augmentation=standard",
    "sampling=imbalanced",
    "sampling.sizes.high=3",
)


def trained(folder: Path, *more: str) -> tuple[str, str, list[float]]:
    """The hashes of the test's manifest and of the weights, and every training loss."""
    outcome = metalearn("train", *SETTINGS, f"run_dir={folder}", *more)
    assert outcome.code == 0, outcome.err
    result = json.loads((folder / "result.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for r in records if r.get("split") == "train" for loss in r["loss"]]
    assert len(losses) == 12
    return result["manifest_hash"], result["weights_sha256"], losses


def test_workers_and_another_run(workplace: Path) -> None:
    runs = [
        trained(workplace / f"run{number}", f"training.workers={workers}")
        for number, workers in enumerate((0, 1, 4, 1))
    ]
    assert all(run == runs[0] for run in runs)


def test_after_a_resume(workplace: Path) -> None:
    whole = trained(workplace / "whole")
    again = workplace / "again"
    trained(again)
    (again / "result.json").unlink()
    (again / "weights.safetensors").unlink()
    newest = max((again / "checkpoints").iterdir(), key=lambda p: p.name)
    newest.unlink() if newest.is_file() else None
    outcome = metalearn("train", *SETTINGS, f"run_dir={again}", "training.workers=4")
    assert outcome.code == 0 and "resuming" in outcome.out
    result = json.loads((again / "result.json").read_text())
    assert (result["manifest_hash"], result["weights_sha256"]) == whole[:2]
