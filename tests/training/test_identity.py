"""What a run is: its configuration, the user's code, its threads; not another run's files."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from metalearn.commands.building.config import compose
from metalearn.training.sources import sources, targets
from tests.command import Outcome, metalearn

OWN = """
from dataclasses import dataclass
import helper
from metalearn.algorithms import MAML
def Mine(module, steps=1, rule=None, loss=None, adapting=None):
    helper.used()
    return MAML(module, steps, rule, loss, adapting=adapting)
"""
SMALL = (
    "dataset=sinusoid",
    "debug=fast",
    "batching=loop",
    "tracker=disabled",
    "tracker.plots=false",
    "training.steps=4",
)
MINE = ("train", *SMALL, "algorithm._target_=mine.Mine", "~algorithm.proximal")


@pytest.fixture
def mine(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an algorithm of the user's and what it imports."""
    monkeypatch.syspath_prepend(str(workplace))
    (workplace / "mine.py").write_text(OWN)
    (workplace / "helper.py").write_text("def used(): pass\n")
    yield workplace
    for name in ("mine", "helper"):
        sys.modules.pop(name, None)


def folder(outcome: Outcome) -> Path:
    assert outcome.code == 0, outcome.err
    return Path(outcome.out.split("run folder: ")[1].split("\n")[0])


def test_edited_code_is_another_run_and_is_told(mine: Path) -> None:
    first = folder(metalearn(*MINE))
    assert "has finished before" in metalearn(*MINE).out
    held = yaml.safe_load((first / "config.yaml").read_text())
    assert set(held["sources"]) == {"mine", "helper"}
    (mine / "helper.py").write_text("def used(): return 1\n")
    again = metalearn(*MINE)
    assert folder(again) != first
    assert f"helper has changed since {first}; this is another run" in again.out
    refused = metalearn(*MINE, f"run_dir={first}").mistake
    assert refused.startswith(f"{first} holds a run on other code: helper has changed; ")
    evaluated = metalearn("evaluate", f"run={first}", "trust=mine")
    assert evaluated.code == 0 and "helper has changed since this run was trained" in evaluated.out


def test_a_run_folder_names_nothing_that_is_not_trusted(mine: Path) -> None:
    run = folder(metalearn(*MINE))
    (mine / "mine.py").write_text("import os\nos.mkdir('imported')\n" + OWN)
    sys.modules.pop("mine")
    line = metalearn("evaluate", f"run={run}").mistake
    assert "would call algorithm._target_=mine.Mine" in line and "trust=true" in line
    assert not Path("imported").exists()
    assert metalearn("evaluate", f"run={run}", "trust=other").code == 2
    assert metalearn("evaluate", f"run={run}", "trust=true").code == 0
    assert Path("imported").exists()
    path = run / "config.yaml"
    for node in (
        {"_target_": "os.system", "command": "touch imported"},
        {"_target_": "torch.nn.functional.importlib.import_module", "name": "x"},
        {"_target_": "torch.utils.collect_env.run", "command": "touch imported"},
        {"_target_": "metalearn.runtime.files.write_atomic", "path": "imported", "content": "x"},
        {"_target_": "metalearn.data.download.download", "addresses": [], "path": "imported"},
    ):
        config = yaml.safe_load(path.read_text())
        config["outer"]["optimizer"] = {"_target_": "torch.optim.Adam", "_args_": [node]}
        del config["algorithm"]
        path.with_name("config.yaml").write_text(yaml.safe_dump(config | {"algorithm": node}))
        assert "trust=true" in metalearn("evaluate", f"run={run}").mistake


def test_every_target_of_conf_is_trusted() -> None:
    from metalearn.commands.building.config import conf_folder
    from metalearn.commands.building.trust import check_trust

    nodes = {
        str(path): node
        for path in conf_folder().rglob("*.yaml")
        if "hydra" not in (node := yaml.safe_load(path.read_text()) or {})
    }
    assert len(list(targets(nodes))) > 60
    check_trust({k: v for k, v in nodes.items() if isinstance(v, dict)}, (), "conf")


def test_sources_follow_what_a_package_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {
        "ours/__init__.py": "from .part import Net\nimport torch, json, numpy",
        "ours/part.py": "from ours.deep import base\nfrom . import late\nNet = base",
        "ours/deep/__init__.py": "",
        "ours/deep/base.py": "from ..late import x",
        "ours/late.py": "x = 1",
        "ours/unused.py": "",
        "broken.py": "def (",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = sources({"a": [{"_target_": "ours.Net"}], "b": {"_target_": "torch.optim.Adam"}})
    assert set(found) == {"ours", "ours.part", "ours.deep", "ours.deep.base", "ours.late"}
    assert sources({"a": {"_target_": "nowhere.at.all"}}) == {}
    assert list(sources({"a": {"_target_": "broken.Net"}})) == ["broken"]
    sys.modules.pop("ours", None)


def test_the_name_of_a_run_says_its_ways_and_shots() -> None:
    asked = ["experiment=omniglot_maml_5w1s", "episodes.ways=20", "episodes.shots=5"]
    assert compose(asked)["run_dir"].startswith("runs/omniglot_maml_20w5s-seed0-")
    assert compose(asked[:1])["run_dir"].startswith("runs/omniglot_maml_5w1s-seed0-")


TRAIN = ("train", *SMALL, "training.checkpoint_every=2")


def test_another_run_s_checkpoint_is_refused_and_ones_own_is_taken(workplace: Path) -> None:
    first = folder(metalearn(*TRAIN, "run_dir=first"))
    assert folder(metalearn(*TRAIN, "run_dir=other", "seed=1")) == Path("other")
    for path in Path("other").glob("[!c.]*"):
        path.unlink()
    shutil.rmtree("other/checkpoints")
    shutil.copytree(first / "checkpoints", "other/checkpoints")
    line = metalearn(*TRAIN, "run_dir=other", "seed=1").mistake
    assert line.startswith("the checkpoints in other are another run's (seed 0, config ")
    # Where the run is the same, its folder may be moved or copied.
    shutil.copytree(first, "copied")
    Path("copied/result.json").unlink()
    assert "resuming copied at step 4" in metalearn(*TRAIN, "run_dir=copied").out


def test_a_run_goes_on_with_the_threads_that_it_began_with(workplace: Path) -> None:
    assert metalearn(*TRAIN, "run_dir=run").code == 0
    Path("run/result.json").unlink()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcome = metalearn(*TRAIN, "run_dir=run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "this run began with 1 threads, and goes on with them" in outcome.out
    assert json.loads(Path("run/result.json").read_text())["threads"] == 1


def test_weights_that_are_not_the_run_s_are_not_measured(workplace: Path) -> None:
    run = folder(metalearn(*TRAIN, "run_dir=run"))
    data = bytearray((run / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "weights.safetensors").write_bytes(data)
    assert "is not what the run wrote" in metalearn("evaluate", "run=run").mistake
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_that_goes_while_it_trains(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from metalearn.training.episodic import Episodic

    real, taken = Episodic.step, []

    def step(self, number, *rest):
        taken.append(number)
        if number == 3:
            os.rename("run", "elsewhere") if how == "moved" else shutil.rmtree("run")
        return real(self, number, *rest)

    monkeypatch.setattr(Episodic, "step", step)
    line = metalearn(*TRAIN, "run_dir=run", "training.steps=40").mistake
    assert line.startswith("run was moved or removed while it trained")
    assert taken == [1, 2, 3] and not Path("run").exists()
    if how == "moved":
        monkeypatch.undo()
        monkeypatch.chdir(workplace)
        os.rename("elsewhere", "run")
        monkeypatch.setenv("METALEARN_CACHE", str(workplace))
        outcome = metalearn(*TRAIN, "run_dir=run", "training.steps=40")
        assert outcome.code == 0 and "resuming run at step 2" in outcome.out


@pytest.mark.parametrize("how", ["gone", "cut", "spoilt", "bytes"])
def test_records_that_are_lost_are_told(workplace: Path, how: str) -> None:
    assert metalearn(*TRAIN, "run_dir=run").code == 0
    Path("run/result.json").unlink()
    path = Path("run/metrics.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    half = [line for line in lines if b'"step": 3' not in line and b'"step": 4' not in line]
    left = {
        "gone": None,
        "cut": half[:-1],
        "spoilt": [lines[0], b"{no json}\n", *lines[2:]],
        "bytes": [b"\xff\xfe\n", *lines[1:]],
    }[how]
    path.unlink() if left is None else path.write_bytes(b"".join(left))
    outcome = metalearn(*TRAIN, "run_dir=run")
    assert outcome.code == 0, outcome
    told = {
        "gone": "run/metrics.jsonl is gone or holds nothing: its records up to step 4 are lost",
        "cut": "run/metrics.jsonl ends at step",
        "spoilt": "run/metrics.jsonl had 1 damaged lines, which are left out",
        "bytes": "run/metrics.jsonl had 1 damaged lines, which are left out",
    }[how]
    assert told in outcome.out
    kept = path.read_bytes().splitlines(keepends=True)
    assert [line for line in kept if line in lines] == [
        line for line in left or [] if line in lines and b'"test"' not in line
        and b'"summary"' not in line
    ]  # fmt: skip


def test_a_run_that_a_clock_ended_says_how_to_take_its_steps_again(workplace: Path) -> None:
    clocked = ("training.steps=100000", "training.seconds=0.05", "training.validate_every=100000")
    asked = ("train", *SMALL, *clocked, "evaluation.untrained=false")
    first = metalearn(*asked, "run_dir=first")
    assert folder(first) == Path("first")
    result = json.loads(Path("first/result.json").read_text())
    steps = result["steps"]
    repeat = f"training.steps={steps} training.seconds=null outer.schedule.T_max=100000"
    assert steps < 100000 and result["repeat"] == repeat
    assert f"a clock ended it; {repeat} takes the same steps again" in first.out
    again = folder(metalearn(*asked, *repeat.split(), "run_dir=again"))
    other = json.loads((again / "result.json").read_text())
    assert other["repeat"] is None and other["steps"] == steps
    for name in ("weights_sha256", "last_weights_sha256", "loss", "validation_score"):
        assert other[name] == result[name]
