"""A run keeps the batching that it chose, and a resumed one goes on with it."""

import json
from pathlib import Path

from tests.command import metalearn

RUN = [
    "debug=fast",
    "dataset.classes=60",
    "backbone.filters=4",
    "tracker=disabled",
    "tracker.plots=false",
    "run_dir=run",
]


def test_a_run_keeps_its_choice_and_goes_on_with_it(workplace: Path) -> None:
    outcome = metalearn("train", *RUN)
    assert outcome.code == 0, outcome.err
    kept = json.loads(Path("run/engine.json").read_text())
    assert kept["seconds"][kept["plan"]] == min(kept["seconds"].values())
    assert f"engine: {kept['plan']}, " in outcome.out

    # Another choice than a measurement could make: it has to be read, not made again.
    Path("run/engine.json").write_text(json.dumps({"plan": "2", "seconds": {"2": 0.5}}))
    Path("run/result.json").unlink()
    again = metalearn("train", *RUN)
    assert again.code == 0, again.err
    assert "engine: 2, 500 ms a task" in again.out
    assert json.loads(Path("run/engine.json").read_text())["plan"] == "2"


def test_a_batching_that_was_given_is_not_measured(workplace: Path) -> None:
    outcome = metalearn("train", *RUN, "batching=loop")
    assert outcome.code == 0, outcome.err
    assert "engine:" not in outcome.out and not Path("run/engine.json").exists()
