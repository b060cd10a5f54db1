"""The table of the two-stage runs says what was measured, and what was not."""

import json
from pathlib import Path

from scripts.cifar_fs_table import table


def wrote(folder: Path, **result: object) -> None:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))


def rows(folder: Path) -> dict[str, list[str]]:
    lines = [line for line in table(folder).splitlines() if line.startswith("| ")]
    parts = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {cells[0]: cells[1:] for cells in parts}


def test_what_did_not_run_is_said(tmp_path: Path) -> None:
    found = rows(tmp_path)
    assert [cells[:2] for cells in list(found.values())[:4]] == [["not measured"] * 2] * 4
    assert found["published: RFS-simple, ResNet-12 (Tian et al. 2020)"][:2] == ["71.5", "86.0"]


def test_results_are_shown_in_percent_with_their_manifests(tmp_path: Path) -> None:
    measured = {"accuracy": 0.71234, "accuracy_half_width": 0.00456, "episodes": 1000}
    few = [{**measured, "shots": 5, "manifest_hash": "b" * 64}]
    wrote(
        tmp_path / "pretrain", few_shot=few, norm_policy="frozen", accuracy=0.8, classes=64,
        accuracy_half_width=0.02, images=1920, epochs=90.0, images_per_second=4000.4, seed=0,
        device="NVIDIA H100", weights_sha256="c" * 64,
    )  # fmt: skip
    wrote(tmp_path / "maml_1", **measured, norm_policy="transductive", manifest_hash="a" * 64)
    found = rows(tmp_path)
    first = found["pre-trained ResNet-12, nearest centroid by the cosine"]
    assert first == ["not measured", "71.23 ± 0.46", "1000", "frozen", "b" * 12]
    last = found["MAML from it, second order, 5 steps"]
    assert last == ["71.23 ± 0.46", "not measured", "1000", "transductive", "a" * 12]
    assert "64 base classes: 80.00 ± 2.00 (1920 images); 90 epochs, 4000 images/s" in table(
        tmp_path
    )
