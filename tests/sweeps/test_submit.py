"""`metalearn sweep submit`: workers that are left, beside this shell or in a real Slurm's queue."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import metalearn
from tests.sweeps.test_study import LONG, ends, planned, results

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"


def waited(for_what: Callable[[], object], seconds: float = 1800) -> None:
    until = time.monotonic() + seconds
    while not for_what():
        assert time.monotonic() < until, metalearn("sweep", "status", "s").out
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("executor=pbs",), "executor=pbs is not known; use slurm or local"),
        (("executor=local", "partition=low"), "partition is of executor=slurm; leave it out"),
        (("executor=local", "slurm.mem=8G"), "mem is of executor=slurm; leave it out"),
        (("workers=0",), "workers=0 must be a whole number, 1 or more"),
        ((), "executor=slurm needs Slurm, and there is no srun here; use executor=local"),
    ],
)
def test_what_cannot_be_submitted(
    words: tuple[str, ...], line: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    planned()
    assert metalearn("sweep", "submit", "s", *words).mistake == line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_workers_beside_this_shell(workplace: Path) -> None:
    planned(seeds=[0, 1])
    outcome = metalearn("sweep", "submit", "s", "workers=2", "executor=local")
    assert "2 workers (processes " in outcome.out and outcome.code == 0
    waited(lambda: ends() == ["done", "done"])


@pytest.fixture
def slurm() -> None:
    """It is asked here and not at the import: one that has stopped answers after nine seconds."""
    found = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True, check=False)
    if not found or found.returncode:
        pytest.skip("no Slurm runs here; scripts/slurm.sh start")


@pytest.mark.cluster
@pytest.mark.usefixtures("slurm")
def test_preempted_killed_and_restarted_it_ends_bitwise(workplace: Path) -> None:
    """A high-priority job, a `kill -9` and a new slurmd; then the weights of undisturbed runs."""
    lists = {"algorithm": ["maml", "anil"]}
    more = [o for o in LONG["overrides"] if "steps" not in o and "every" not in o]
    more += ["training.steps=150", "training.validate_every=50", "training.checkpoint_every=5"]
    planned(overrides=more, lists=lists, seeds=[0, 1])
    assert "no partition" not in metalearn("sweep", "submit", "s", "workers=2", "partition=low").out
    waited(lambda: "2 running" in metalearn("sweep", "status", "s").out)
    waited(lambda: len(list(Path("s/runs").glob("*/checkpoints/step-*"))) > 4)
    high = ["sbatch", "-p", "high", "-n", "2", "-o", "/dev/null", "--wrap", "sleep 5"]
    subprocess.run(high, check=True, capture_output=True)
    waited(lambda: sum("stopped" in own.split() for own in ends()) > 0)
    waited(lambda: "running" in metalearn("sweep", "status", "s").out)
    paths = Path("s/workers").glob("*.beat")
    victim = json.loads(next(paths).with_suffix(".json").read_text())["pid"]
    subprocess.run(["kill", "-9", str(victim)], check=True)
    subprocess.run([SCRIPT, "node"], check=True)
    waited(lambda: all(own.split()[-1:] == ["done"] for own in ends()), 3600)
    assert len(results()) == 4
    for name, result in results().items():
        chosen = [f"algorithm={result['algorithm'].lower()}", f"seed={result['seed']}"]
        assert metalearn("train", *more, *chosen, f"run_dir=alone/{name}").code == 0
        alone = json.loads(Path("alone", name, "result.json").read_text())
        assert alone["weights_sha256"] == result["weights_sha256"]
