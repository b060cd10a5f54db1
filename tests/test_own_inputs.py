"""Inputs and targets that are dicts, through train, evaluate and compare, a transductive method
among them."""

import json
from pathlib import Path

import pytest

from tests.command import metalearn
from tests.own_inputs import config_folder

OWN = ["dataset=sentences", "backbone=encoder", "tracker=disabled", "tracker.plots=false"]
SHAPE = ["episodes.ways=3", "episodes.shots=2", "episodes.queries=3"]
FEW = [
    *("training.steps=30", "training.meta_batch=4", "training.queries=3"),
    *("training.validate_every=10", "evaluation.episodes=40", "evaluation.validation_episodes=20"),
    *("batching=vmap", "outer.optimizer.lr=0.05"),
]


@pytest.mark.parametrize(
    "how",
    [
        ["algorithm=maml", "loss=by_importance", "inner.rate=1.0", "algorithm.steps=2"],
        ["algorithm=anil", "loss=by_importance", "inner.rate=1.0"],
        ["algorithm=protonet", "loss=by_importance"],
        ["algorithm=soft_kmeans"],
    ],
    ids=lambda how: how[0].partition("=")[2],
)
def test_trained_and_evaluated_again(workplace: Path, how: list[str]) -> None:
    found = config_folder(workplace / "conf")
    outcome = metalearn("train", *how, *OWN, *SHAPE, *FEW, found, "run_dir=run")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["accuracy"] > 0.7 and result["episodes"] == 40
    assert result["transductive"] == (how[0] == "algorithm=soft_kmeans")
    again = metalearn("evaluate", "run=run", "trust=tests")
    assert again.code == 0, again.err
    (folder,) = Path("run/evaluations").iterdir()
    measured = json.loads((folder / "result.json").read_text())
    assert measured["accuracy"] == pytest.approx(result["accuracy"], abs=1e-6)
    assert measured["manifest_hash"] == result["manifest_hash"]


COMMON = [
    *("outer/schedule=constant", "training.steps=1000", "training.meta_batch=2"),
    *("training.validate_every=50", "training.queries=3", "evaluation.validation_episodes=4"),
    *("evaluation.episodes=4", "evaluation.untrained=false", "batching=loop", "loss=by_importance"),
]


def test_compared(workplace: Path) -> None:
    found = config_folder(workplace / "conf")
    outcome = metalearn(
        "compare", *OWN, found, "episodes.ways=3", "episodes.shots=[2]", "episodes.queries=3",
        "evaluation.episodes=12", "evaluation.network_episodes=4", "evaluation.timed=1",
        "tuning.episodes=6", "tuning.network_episodes=2", "tuning.head_rates=[0.1,1]",
        "tuning.head_steps=[1,4]", "tuning.rates=[0.1]", "tuning.steps=[1,2]", "meta.seconds=0.2",
        "meta.shots=2", "meta.scratch=[]", "isolate=false", "run_dir=run",
        '+meta.overrides.soft=["algorithm=soft_kmeans"]',
        f"meta.common={json.dumps(COMMON)}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = json.loads(Path("run/comparison.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {
        *("untrained", "nearest_centroid", "logistic_regression", "linear_probe"),
        *("fine_tune_head", "fine_tune_all", "protonet", "maml", "anil", "meta_baseline", "soft"),
    }
    assert [row["method"] for row in rows if row["transductive"]] == ["soft"]
    assert all(1 / 3 - 0.15 < row["accuracy"] <= 1 for row in rows)


@pytest.mark.parametrize(
    "asked, line",
    [
        (["augmentation=standard"], "augmentation is for images; use augmentation=none"),
        (["images.size=8"], "images is for images; use images=as_they_are"),
        (["backbone=conv4"], "backbone=conv4 needs images, not dataset; use backbone=mlp"),
        (["episodes.ways=6"], "5 classes in its test split; use at most 5"),
    ],
)
def test_what_is_not_for_tensors_is_one_line(workplace: Path, asked, line: str) -> None:
    found = config_folder(workplace / "conf")
    assert line in metalearn("train", *OWN, *SHAPE, *FEW, found, *asked, "run_dir=run").mistake
    assert not Path("run").exists()
