"""The commands that the pages of detection and segmentation show, and their tables."""

import csv
import json
from pathlib import Path

import pytest

from scripts import dense_runs, dense_table

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("experiment", dense_runs.RUNS)
def test_a_page_has_the_commands_that_run(experiment: str, capsys) -> None:
    dense_runs.main([experiment])
    told, page = capsys.readouterr().out, EXPERIMENTS / experiment / "README.md"
    lines = [f"    {line}" for line in told.splitlines()]
    assert len(lines) > len(dense_runs.RUNS[experiment])
    shown = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in shown] == []


def test_a_table_of_runs_and_what_was_measured_later(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("one\n<!-- table -->\nold\n<!-- end -->\ntwo\n")
    same = {"algorithm": "ANIL", "dataset": "tiny_imagenet", "head": "detection, weights /a/b/base"}
    made = {
        "": {"ap50": 0.25, "ap50_half_width": 0.02, "shots": 5, "steps": 400, "box_ap50": 0.5},
        "evaluations/of_one": {"ap50": 0.125, "ap50_half_width": 0.01, "shots": 1, "steps": None},
    }
    for place, result in made.items():
        folder = tmp_path / "t_anil" / place
        folder.mkdir(parents=True, exist_ok=True)
        more = {"untrained_ap50": 0.1, "untrained_ap50_half_width": 0.03} if not place else {}
        half = {"box_ap50_half_width": 0.04} if not place else {}
        (folder / "result.json").write_text(json.dumps({**same, **result, **more, **half}))
    dense_table.main([str(tmp_path), str(tmp_path / "t_anil")])
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("one\n") and page.endswith("two\n") and "old" not in page
    assert "| run | data | meta-steps | 1-shot | 5-shot | untrained | boxes alone |" in page
    row = "| t_anil | tiny_imagenet | 400 | 12.5 ± 1.0 | 25.0 ± 2.0 | 10.0 ± 3.0 | 50.0 ± 4.0 |"
    assert row in page
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [r["steps"] for r in rows] == ["400"] * 2  # what was learned is the run's
    assert rows[0]["head"] == "detection, weights base"
