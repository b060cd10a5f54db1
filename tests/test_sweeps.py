"""`-m`: serial, joblib and submitit, for real, and the W&B sweep file."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.commands.building.config import compose, conf_folder
from metalearn.training import run
from tests.command import FAST, metalearn

METALEARN = str(Path(sys.executable).with_name("metalearn"))


def results() -> list[dict[str, Any]]:
    """The results of all runs in the current folder, each of a folder of its own."""
    return [json.loads(path.read_text()) for path in sorted(Path("runs").glob("*/result.json"))]


def chosen() -> list[tuple[str, int]]:
    """Algorithm and seed of every result."""
    return sorted((result["algorithm"], result["seed"]) for result in results())


def records() -> list[dict[str, Any]]:
    """What the one sweep in the current folder wrote down."""
    (path,) = Path("runs/multirun").glob("*/jobs.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`metalearn train -m` in a process of its own, as launchers need."""
    return subprocess.run(
        [METALEARN, "train", "-m", *FAST, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_serial_sweep_gives_a_result_for_every_member(workplace: Path) -> None:
    outcome = metalearn("train", "-m", "algorithm=maml,protonet", "seed=0,1", *FAST)
    assert outcome.code == 0, outcome.err
    assert chosen() == [("MAML", 0), ("MAML", 1), ("ProtoNet", 0), ("ProtoNet", 1)]
    scores = {result["validation_score"] for result in results()}
    assert scores == {record["score"] for record in records()}
    table = outcome.out[outcome.out.rindex("validation score") :]
    assert "algorithm=maml seed=0 " in table and "debug=fast" not in table
    assert "differs too" in table
    assert table.count("outputs=5 gradient=adjoint") == table.count("outputs=null gradient=unroll")
    assert table.count("outputs=null gradient=unroll") == 2 and "steps=" not in table
    assert all(record["folder"] in table for record in records())
    assert {path.name for path in workplace.iterdir()} == {"runs"}


def test_a_failing_member_is_named_and_the_others_run(workplace: Path) -> None:
    arguments = ("algorithm=protonet,maml", "gradient=first_order", *FAST)
    outcome = metalearn("train", "-m", *arguments)
    assert (outcome.code, chosen()) == (1, [("MAML", 0)])
    (line,) = outcome.err.splitlines()
    assert line.startswith("metalearn: job 0 (algorithm=protonet gradient=first_order ")
    assert "algorithm=protonet cannot use gradient=first_order; use gradient=adjoint" in line


def test_a_bug_in_a_member_keeps_its_traceback_in_the_records(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run._train

    def broken(config: Any, *rest: Any) -> float | None:
        if config["seed"] == 0:
            raise RuntimeError("a bug")
        return real(config, *rest)

    monkeypatch.setattr(run, "_train", broken)
    outcome = metalearn("train", "-m", "seed=0,1", *FAST)
    assert (outcome.code, chosen()) == (1, [("MAML", 1)])
    assert "job 0 (seed=0 " in outcome.err and "RuntimeError: a bug" in outcome.err
    assert "traceback of job 0: runs/multirun/" in outcome.err
    assert "Traceback" not in outcome.err and "in broken" in records()[0]["traceback"]


def test_sigterm_ends_a_serial_sweep(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> float:
        raise SystemExit(128 + signal.SIGTERM)

    monkeypatch.setattr(run, "_train", stopped)
    outcome = metalearn("train", "-m", "seed=0,1,2", *FAST)
    assert outcome.code == 143 and [record["job"] for record in records()] == [0]
    assert "sweep stopped; the same command goes on from there" in outcome.err
    assert "seed=0" in outcome.out and "stopped" in outcome.out


def test_all_members_fail_in_folders_of_their_own(workplace: Path) -> None:
    asked = ("hydra.job.chdir=true", "algorithm=protonet,r2d2", "gradient=first_order")
    outcome = metalearn("train", "-m", *asked, *FAST)
    assert outcome.code == 1 and len(records()) == 2
    assert outcome.err.count("cannot use gradient=first_order") == 2


def test_a_run_id_of_wandb_is_not_that_of_every_member(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "one")
    monkeypatch.setattr(run, "_train", lambda *_: float("WANDB_RUN_ID" in os.environ))
    outcome = metalearn("train", "-m", "seed=0,1", *FAST)
    assert outcome.code == 0 and [record["score"] for record in records()] == [0, 0]
    assert outcome.err == (
        "metalearn: WANDB_RUN_ID names one run; each member of a sweep gets an id of its own\n"
    )


def test_slurm_that_is_not_here_is_one_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    asked = ("train", "-m", "hydra/launcher=submitit_slurm", "seed=0,1", *FAST)
    assert "needs Slurm, and there is no srun here" in metalearn(*asked).mistake


def test_one_run_dir_for_several_members_is_refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_train", lambda *_: 0.5)
    outcome = metalearn("train", "-m", "seed=0,1", "run_dir=one", *FAST)
    assert outcome.code == 1 and "one holds a run with seed=0, not 1" in outcome.err
    numbered = metalearn("train", "-m", "seed=0,1", r"run_dir=many/${hydra:job.num}", *FAST)
    assert numbered.code == 0
    assert [Path(f"many/{n}/config.yaml").exists() for n in range(3)] == [True, True, False]


@pytest.mark.slow
def test_joblib_runs_members_side_by_side(workplace: Path) -> None:
    two = ("algorithm=maml,protonet", "batching=loop")
    done = command("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *two)
    assert done.returncode == 0, done.stderr
    assert chosen() == [("MAML", 0), ("ProtoNet", 0)]
    assert sorted(record["job"] for record in records()) == [0, 1]


@pytest.mark.slow
def test_submitit_runs_members_in_jobs_of_their_own(workplace: Path) -> None:
    done = command(
        "hydra/launcher=submitit_local",
        "algorithm=maml,protonet",
        "gradient=first_order",
        "hydra.launcher.timeout_min=5",
    )
    assert done.returncode == 1 and chosen() == [("MAML", 0)]
    assert "cannot use gradient=first_order" in done.stdout and "Traceback" not in done.stderr
    assert len(list(Path("runs/multirun").glob("*/.submitit/*"))) >= 2


def test_the_wandb_sweep_file_makes_commands_that_run(workplace: Path) -> None:
    sweep = yaml.safe_load((conf_folder() / "sweep" / "wandb.yaml").read_text())
    assert sweep["program"] == "metalearn" and sweep["method"] in ("bayes", "random", "grid")
    assert sweep["metric"] == {"name": "validation_score", "goal": "maximize"}
    values = []
    for name, space in sweep["parameters"].items():
        value = space["values"][0] if "values" in space else space["min"]
        values.append(f"{name}={value}")
        assert space.get("min", 0) < space.get("max", 1)
    words = [
        word for part in sweep["command"] for word in (values if part.startswith("$") else [part])
    ]
    assert words[:2] == ["metalearn", "train"] and len(words) > 4
    assert compose(words[2:])["tracker"]["mode"] == "online"
    outcome = metalearn(*words[1:], *(small for small in FAST if small != "tracker=disabled"))
    assert outcome.code == 0, outcome.err
    (result,) = results()
    logged = Path("runs").glob("*/metrics.jsonl").__next__().read_text()
    assert result["split"] == "test" and '"val"' in logged
