"""`metalearn train` in real processes, killed by real signals."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from metalearn.commands import train
from metalearn.commands.building.config import compose
from metalearn.evaluation import plots
from metalearn.tracking import read_records
from metalearn.training import episodic, result
from metalearn.training.run import finished
from tests.preloaded import metalearn

LIMIT = 900  # seconds; a machine that is busy with other runs is slow, not broken

BUDGET = [
    "dataset=glyphs", "dataset.classes=24", "dataset.size=16", "dataset.drawings=6",
    "backbone.filters=8", "episodes.ways=3", "episodes.queries=2", "training.steps=40",
    "training.meta_batch=2", "training.checkpoint_every=5", "training.validate_every=10",
    "evaluation.episodes=10", "evaluation.validation_episodes=5",
    "tracker=disabled", "tracker.plots=false",
    "device=cpu", "batching=loop",
]  # fmt: skip

RUNS = {
    # Everything that a checkpoint has to hold: moments, schedule, learned rates, averages.
    "maml": [
        "algorithm=maml", "algorithm.steps=2", "inner=lslr", "inner.rate=0.05",
        "backbone.norm=running", "outer=adam", "outer/schedule=cosine", "training.clip_norm=1.0",
    ],
    "protonet": ["algorithm=protonet", "backbone.downsample=stride", "seed=1"],
    "anil": ["algorithm=anil", "gradient=first_order", "outer/schedule=step"],
    "reptile": ["algorithm=reptile", "inner.rate=0.01", "outer/schedule=linear"],
    "sinusoid": ["dataset=sinusoid", "inner=meta_sgd", "inner.rate=0.01", "outer=adamw"],
}  # fmt: skip


def command(name: str, folder: Path) -> list[str]:
    budget = BUDGET
    if name == "sinusoid":
        budget = [o for o in BUDGET if not o.startswith(("dataset", "backbone"))]
    return [*budget, *RUNS[name], f"run_dir={folder}"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def here(overrides: list[str]) -> tuple[float | None, str]:
    """The job in this process, which saves the seconds that importing torch takes."""
    printed = Console(file=io.StringIO(), width=200)
    score = train.run(compose(overrides), printed)
    return score, printed.file.getvalue()  # type: ignore[attr-defined]


def signalled(
    overrides: list[str], number: signal.Signals, at: int, job: str = "train"
) -> tuple[int, str, str]:
    """The command, and `number` to it once it has recorded step `at`: exit code, both outputs."""
    metrics = Path(overrides[-1].removeprefix("run_dir=")) / "metrics.jsonl"
    with metalearn(job, *overrides) as process:
        limit = time.monotonic() + LIMIT
        while process.returncode is None and time.monotonic() < limit:
            if metrics.exists() and f'"step": {at},' in metrics.read_text():
                process.send_signal(number)
                break
            time.sleep(0.005)
        out, err = process.communicate()
    assert process.returncode is not None
    return process.returncode, out, err


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*"))


def outcome(folder: Path) -> dict:
    """What has to be equal: the result without its times, and the hash of the weights."""
    result = json.loads((folder / "result.json").read_text())
    weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert result["weights_sha256"] == weights
    for name in ("seconds", "tasks_per_second", "peak_memory_bytes"):
        assert result.pop(name) > 0
    result.pop("commit")
    return result


def records(folder: Path) -> list[dict]:
    """Every record without its times."""
    rates = ("tasks_per_second", "images_per_second")
    dropped = ("time", "seconds", *rates, "peak_memory_bytes", "commit")
    return [
        {name: value for name, value in record.items() if name not in dropped}
        for record in read_records(folder / "metrics.jsonl")
    ]


def check(whole: Path, broken: Path) -> None:
    assert outcome(broken) == outcome(whole)
    assert records(broken) == records(whole)
    scalars = [r["step"] for r in records(broken) if r["kind"] == "scalars"]
    assert scalars == list(range(1, 41))
    assert (broken / "episodes.csv").read_bytes() == (whole / "episodes.csv").read_bytes()


def test_sigkill_then_sigterm_then_the_end(tmp_path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    want, _ = here(command("maml", whole))

    code, _, err = signalled(command("maml", broken), signal.SIGKILL, at=12)
    assert code == -signal.SIGKILL, err
    assert not (broken / "result.json").exists()
    cut = checkpoints(broken)[-1]
    assert cut % 5 == 0 and 10 <= cut < 40

    code, out, err = signalled(command("maml", broken), signal.SIGTERM, at=cut + 7)
    assert code == 128 + signal.SIGTERM, err
    assert f"resuming {broken} at step {cut}" in out.splitlines()
    stopped = checkpoints(broken)[-1]
    assert cut + 7 <= stopped < 40
    line = (
        f"stopped at step {stopped} of 40 after a checkpoint; the same command goes on from there"
    )
    assert out.splitlines()[-1] == line
    assert "Traceback" not in err
    assert not (broken / "result.json").exists()

    score, printed = here(command("maml", broken))
    assert f"resuming {broken} at step {stopped}" in printed
    assert score == want
    check(whole, broken)
    result = outcome(whole)
    assert result["norm_policy"] == "running" and result["accuracy"] > 0.2

    # A finished run is shown and not trained again.
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    again, printed = here(command("maml", whole))
    assert again == want
    assert f"{whole} has finished before; resume=never trains anew in a fresh folder" in printed
    assert f"{result['accuracy']:.2%}" in printed
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_twice_and_ended_by_real_processes(tmp_path, name) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [sys.executable, "-m", "metalearn.cli", "train"]
    subprocess.run([*words, *command(name, whole)], check=True, capture_output=True)
    assert signalled(command(name, broken), signal.SIGKILL, at=3)[0] == -signal.SIGKILL
    assert signalled(command(name, broken), signal.SIGKILL, at=27)[0] == -signal.SIGKILL
    assert signalled(command(name, broken), signal.SIGHUP, at=34)[0] == 128 + signal.SIGHUP
    subprocess.run([*words, *command(name, broken)], check=True, capture_output=True)
    check(whole, broken)


def test_a_kill_while_the_result_is_written(tmp_path, monkeypatch) -> None:
    """All is trained, nothing is written: the same command tests again and ends the run."""

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    small = [*command("sinusoid", whole)[:-1], "training.steps=10", "tracker.plots=true"]
    here([*small, f"run_dir={whole}"])
    for module, name in (
        (episodic, "save_weights"),
        (result, "write_episode_file"),
        (plots, "plot_accuracy_by_step"),
        (result, "write_json"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, kill)
            with pytest.raises(Killed):
                here([*small, f"run_dir={broken}"])
        assert finished(broken) is None
    here([*small, f"run_dir={broken}"])
    assert outcome(broken) == outcome(whole)
    assert records(broken) == records(whole)  # one test among them, whatever was begun


def test_damage_is_said_on_the_terminal(tmp_path) -> None:
    small = [*command("sinusoid", tmp_path)[:-1], "training.steps=20", f"run_dir={tmp_path / 'a'}"]
    here(small)
    (tmp_path / "a" / "result.json").unlink()
    newest = tmp_path / "a" / "checkpoints" / "step-00000020"
    (newest / "state.json").write_text("{")
    _, printed = here(small)
    assert f"{newest} cannot be read (JSONDecodeError); going on from the one before" in printed
    assert "resuming" in printed and "at step 15" in printed
    assert os.path.exists(tmp_path / "a" / "result.json")
