"""Run folders that earlier versions wrote open, go on and can be started from.

`tests/old_runs/` was written at commit 99e5d78, before modules moved and keys were renamed.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from metalearn.commands.building.arguments import target
from metalearn.commands.building.config import compose
from metalearn.training.old_configs import TARGETS, renewed
from tests.command import metalearn

OLD = Path(__file__).parent / "old_runs"


@pytest.fixture
def old(workplace: Path) -> Path:
    shutil.copytree(OLD, workplace / "old")
    return workplace / "old"


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rows(folder: Path) -> list[list[float]]:
    """Every number of every episode."""
    lines = list(csv.reader((folder / "episodes.csv").read_text().splitlines()))[1:]
    return [[float(cell) for cell in line] for line in lines]


def test_the_folders_name_what_has_moved() -> None:
    """So that what follows says something."""
    train = yaml.safe_load((OLD / "train/config.yaml").read_text())
    assert train["adaptation"]["_target_"] == "metalearn.adaptation.head"
    pretrain = yaml.safe_load((OLD / "pretrain/config.yaml").read_text())
    assert pretrain["division"]["val"] == 0.2 and "least" in pretrain["schedule"]


def test_evaluate_gives_what_was_recorded(old: Path) -> None:
    outcome = metalearn("evaluate", "run=old/train")
    assert outcome.code == 0, outcome.err
    (folder,) = (old / "train/evaluations").iterdir()
    before, after = read(old / "train"), read(folder)
    for name in ("manifest_hash", "weights_sha256", "ways", "shots", "norm_policy", "adaptation"):
        assert after[name] == before[name], name
    assert after["accuracy"] == pytest.approx(before["accuracy"], abs=1e-6)
    assert before["accuracy"] > 0.4  # of three classes
    for one, other in zip(rows(folder), rows(old / "train"), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def overrides(folder: Path) -> list[str]:
    """The command of the finished run, from what its configuration says."""
    return [*(folder / "command.txt").read_text().split(), f"run_dir={folder}"]


def test_a_checkpoint_of_meta_training_goes_on(old: Path) -> None:
    folder = old / "train"
    before = read(folder)
    for name in ("result.json", "weights.safetensors"):
        (folder / name).unlink()
    outcome = metalearn("train", *overrides(folder))
    assert outcome.code == 0, outcome.err
    assert f"resuming {folder} at step 35" in outcome.out
    after = read(folder)
    for name in ("manifest_hash", "steps", "selected_step", "adaptation"):
        assert after[name] == before[name], name
    assert after["validation_score"] == pytest.approx(before["validation_score"], abs=1e-4)
    assert after["accuracy"] == pytest.approx(before["accuracy"], abs=1e-3)


def test_a_checkpoint_of_pre_training_goes_on(old: Path) -> None:
    folder = old / "pretrain"
    before = read(folder)
    for name in ("result.json", "backbone.safetensors"):
        (folder / name).unlink()
    outcome = metalearn("pretrain", *overrides(folder))
    assert outcome.code == 0, outcome.err
    assert f"resuming {folder} at step 10" in outcome.out
    after = read(folder)
    for name in ("steps", "selected_step", "images", "val_images", "classes"):
        assert after[name] == before[name], name
    # The same images are held out, and the rotation head went on.
    assert after["validation_score"] == pytest.approx(before["validation_score"], abs=1e-4)
    assert [one["manifest_hash"] for one in after["few_shot"]] == [
        one["manifest_hash"] for one in before["few_shot"]
    ]


def test_training_starts_from_a_backbone_of_then(old: Path) -> None:
    words = read(old / "pretrain")["command"].split()[2:]
    small = (
        "debug=fast",
        "episodes.ways=3",
        "episodes.queries=2",
        "tracker=disabled",
        "tracker.plots=false",
    )
    outcome = metalearn("train", *words, *small, "device=cpu", "run_dir=run")
    assert outcome.code == 0, outcome.err
    assert read(Path("run"))["starting_weights"] == "old/pretrain"
    assert "2 of 2 tensors matched" in outcome.out


def test_a_checkpoint_of_another_kind_is_refused_in_one_line(old: Path) -> None:
    train, pretrain = old / "train", old / "pretrain"
    for name in ("result.json", "weights.safetensors"):
        (train / name).unlink()
    shutil.rmtree(train / "checkpoints")
    shutil.copytree(pretrain / "checkpoints", train / "checkpoints")
    assert metalearn("train", *overrides(train)).mistake == (
        f"the checkpoints in {train} hold no 'meta': they are of another version; use resume=never"
    )


def test_a_key_of_then_on_the_command_line_names_the_new_one(workplace: Path) -> None:
    told = metalearn("pretrain", "division.val=0.1").mistake
    assert told == "no key division.val; it is held_out.val now"
    told = metalearn("pretrain", "schedule.least=0.1").mistake
    assert told == "no key schedule.least; it is schedule.min_factor now"


def test_keys_are_renamed_moved_and_dropped() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": [{"_target_": "x.y.Z", "k": 0}], "e": 3, "f": {"g": 4}}
    keys = {"a.b": "n.m", "a.c": None, "e": "f.h", "gone": "there", "e.deep": None}
    added = {"n.p": [5], "f.g": 6}
    assert renewed(old, keys, added, {"x.y": "x.w"}) == {
        "a": {},
        "d": [{"_target_": "x.w.Z", "k": 0}],
        "f": {"g": 4, "h": 3},
        "n": {"m": 1, "p": [5]},
    }
    assert old["a"] == {"b": 1, "c": 2}  # a copy was changed
    assert renewed({"a": 1, "b": 2}, {"a": "b"}) == {"b": 2}  # what is there already stays


def test_what_has_moved_is_where_the_table_says() -> None:
    for old, new in TARGETS.items():
        renamed = old.rpartition(".")[2][0].isupper()  # a class, else a module
        assert callable(target(new if renamed else f"{new}.head"))


def test_what_older_versions_lack_does_as_before() -> None:
    """Or a pre-training, or a comparison, that they began would be another run now."""
    pretrain, compare = (compose([], job) for job in ("pretrain", "compare"))
    old = renewed({"held_out": {}})
    for name in ("distillation", "manifold_mixup"):
        assert old[name] == pretrain[name]
    old = renewed({"meta": {}, "tuning": {"steps": [1]}})
    assert old["augmentation"] == compare["augmentation"]
    for name in ("prototype_rates", "prototype_steps", "copies"):
        assert old["tuning"][name] == compare["tuning"][name]
