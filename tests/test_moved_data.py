"""A run's own images, from another folder and after they have moved; others are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from metalearn.commands.building.config import reopen
from metalearn.commands.evaluate import _check_images
from metalearn.training.old_configs import renewed
from tests.command import FAST, metalearn

KEPT = [o for o in FAST if not o.startswith("dataset.")]
SMALL = (
    *("algorithm=protonet", "batching=loop", "episodes.ways=3", "episodes.queries=3"),
    *("training.queries=3", "dataset=folder", "dataset.size=16", "dataset.root=data"),
    *("dataset.fractions=[.5,.25,.25]", "run_dir=runs/r", "training.steps=1"),
)


@pytest.fixture
def moved(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on `data`, given relatively; the images are in `elsewhere` now."""
    rng = np.random.default_rng(0)
    for c in range(12):
        (workplace / "data" / f"c{c:02d}").mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
            image.save(workplace / "data" / f"c{c:02d}" / f"{i}.png")
    outcome = metalearn("train", *KEPT, *SMALL)
    assert outcome.code == 0, outcome.err
    (workplace / "sub").mkdir()
    monkeypatch.chdir(workplace / "sub")
    return (workplace / "data").rename(workplace / "elsewhere")


def test_the_same_images_are_found_and_others_refused(moved: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    line = metalearn("evaluate", "run=../runs/r").mistake
    assert f"no folder or archive {tmp_path}/data; correct its path, dataset.root" in line
    shutil.make_archive(str(tmp_path / "packed"), "zip", moved)
    before = json.loads((run / "result.json").read_text())
    outcome = metalearn("evaluate", "run=../runs/r", f"dataset.root={tmp_path}/packed.zip")
    assert outcome.code == 0, outcome.err
    (new,) = run.glob("evaluations/*")
    after = json.loads((new / "result.json").read_text())
    for name in ("accuracy", "manifest_hash", "dataset_hash"):
        assert after[name] == before[name], name
    config = reopen(run, ["dataset.root=../elsewhere"])
    _check_images(run, config, ["dataset.root=../elsewhere"])
    shutil.rmtree(moved / "c03")
    for result in (before, {n: v for n, v in before.items() if n != "dataset_hash"}):
        (run / "result.json").write_text(json.dumps(result))
        line = metalearn("evaluate", "run=../runs/r", "dataset.root=../elsewhere").mistake
        assert "images or class splits are not those that ../runs/r was trained with" in line
        there = [f"dataset.root={tmp_path}/packed.zip", "evaluation.episodes=2"]
        _check_images(run, reopen(run, there), there)
    line = metalearn("evaluate", "run=../runs/r", "dataset.seed=1").mistake
    assert "evaluate keeps the run's data set" in line


def test_a_relative_place_of_an_older_run_is_where_it_was(workplace: Path) -> None:
    node = {"_target_": "metalearn.data.folder", "root": "data", "splits": "~/lists"}
    mixed = {"_target_": "metalearn.data.Mixture", "sets": {"a": node}}
    for dataset in (node, mixed):
        new = renewed({"dataset": dataset, "evaluation": {"manifest": "m.json"}})
        held = new["dataset"].get("sets", {"a": new["dataset"]})["a"]
        assert held["root"] == str(workplace / "data") and held["class_folder"] == "path"
        assert held["splits"] == str(Path("~/lists").expanduser())
        assert new["evaluation"]["manifest"] == str(workplace / "m.json")
    mine = {"_target_": "mine.data", "splits": "random", "root": None}
    assert renewed({"dataset": mine})["dataset"] == mine
    assert yaml.safe_load(yaml.safe_dump(renewed({"dataset": node})))["dataset"]["min_images"] == 1
