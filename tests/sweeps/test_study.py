"""`metalearn sweep`: planned, worked on by processes that die, looked at, tried again."""

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.commands.building.config import compose
from metalearn.sweeps.claims import Claims
from metalearn.sweeps.plan import read_plan
from metalearn.training.folder import config_hash
from tests import preloaded
from tests.command import metalearn

TINY = [
    "dataset=sinusoid", "backbone=mlp", "backbone.hidden=[8]", "batching=loop",
    "tracker=disabled", "tracker.plots=false",
    "training.steps=2", "training.meta_batch=2", "training.validate_every=1",
    "evaluation.episodes=3", "evaluation.validation_episodes=2", "evaluation.untrained=false",
]  # fmt: skip


def study(text: str = "", **settings: Any) -> None:
    """Write `study.yaml` with the tiny run, or `text` alone."""
    held = {"overrides": TINY, **settings}
    Path("study.yaml").write_text(text or json.dumps(held))


def planned(**settings: Any) -> None:
    study(**settings)
    outcome = metalearn("sweep", "plan", "study.yaml", "s")
    assert outcome.code == 0, outcome.err


def results() -> dict[str, Any]:
    """By the name of its folder, the result of every run."""
    paths = Path("s/runs").glob("*/result.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def ends() -> list[str]:
    """How every attempt at every run ended, in the order of the plan."""
    attempts = Claims(Path("s")).read()
    return [
        " ".join("+".join(sorted(a.ends)) or "-" for a in attempts.get(run.key, []))
        for run in read_plan(Path("s"))
    ]


def test_a_plan_is_every_combination_that_is_not_left_out(workplace: Path) -> None:
    settings: dict[str, Any] = {
        "groups": {"method": {"maml": ["algorithm=maml"], "slow": ["algorithm=anil", "name=x"]}},
        "lists": {"episodes.shots": [1, 5], "inner.rate": [0.1]},
        "exclude": [{"method": "slow", "episodes.shots": [5, 1], "seed": 1}],
    }
    planned(**settings, seeds=[0, 1])
    runs = read_plan(Path("s"))
    assert len(runs) == 6 == len({run.key for run in runs})
    first = [*TINY, "algorithm=maml", "episodes.shots=1", "inner.rate=0.1"]
    assert [run.overrides for run in runs[:2]] == [[*first, "seed=0"], [*first, "seed=1"]]
    for run in runs[::3]:
        whole = compose(run.overrides)
        assert run.config | {"run_dir": whole["run_dir"]} == whole
        assert run.key == config_hash(whole)[:16] and run.folder == whole["run_dir"]
    before = Path("s/plan.jsonl").read_text()
    planned(**settings, seeds=[0, 1, 2])  # those that were there stay as they are
    assert len(read_plan(Path("s"))) == 10 and Path("s/plan.jsonl").read_text().startswith(before)
    outcome = metalearn("sweep", "plan", "study.yaml", "s")
    assert "10 runs in s/plan.jsonl, 0 of them new" in outcome.out


MISTAKES = {
    "lists: {inner.rate: 3}": "lists must be as in lists: {episodes.shots: [1, 5]}",
    "lists: {inner.rate: [1, 1]}": "lists.inner.rate has a value twice; leave one out",
    "groups: {a: [algorithm=maml]}": "groups must be as in groups: {method: {maml: [algorithm=",
    "seeds: 3": "seeds=3 must be different whole numbers, as in seeds: [0, 1, 2]",
    "seeds: [0, 0]": "seeds=[0, 0] must be different whole numbers",
    "command: evaluate": "command=evaluate cannot be planned; use train or pretrain",
    "list: {inner.rate: [1]}": "no key list (did you mean lists?); use command, overrides",
    "overrides: {a: 1}": "overrides must be a list such as [dataset=omniglot, training.steps=9]",
    "overrides: [run_dir=x]": "run_dir is the study's own to say; leave it out",
    "{seeds: [1], overrides: [seed=2]}": "seed is for seeds to say; leave it out",
    "{overrides: [inner.rate=1], lists: {inner.rate: [2]}}": (
        "inner.rate stands in overrides too; leave one out"
    ),
    "{lists: {a: [1]}, groups: {a: {b: [c=1]}}}": "a stands in groups too; leave one out",
    "{lists: {a: [1]}, exclude: [{b: 1}]}": "exclude names b, which does not vary; use a",
    "{lists: {a: [1]}, exclude: [{a: 2}]}": "exclude names a=2, which a never is",
    "{lists: {a: [1]}, exclude: [{a: 1}]}": "exclude leaves no run; leave some of it out",
    "- a": "study.yaml holds no settings; give it command, overrides, groups, lists",
    "a: [": "study.yaml is no YAML:",
    "overrides: [inner.rat=1]": "the run: no key inner.rat (did you mean inner.rate?)",
    "{lists: {gradient: [first_order]}, overrides: [algorithm=protonet]}": (
        "study.yaml: the run: algorithm=protonet cannot use gradient=first_order; use"
    ),
    "{command: pretrain, lists: {training.select: [x]}}": "training.select=x",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(text: str, workplace: Path) -> None:
    study(text)
    assert MISTAKES[text] in metalearn("sweep", "plan", "study.yaml", "s").mistake
    assert [path.name for path in workplace.iterdir()] == ["study.yaml"]


def test_each_of_several_mistakes_has_its_line(workplace: Path) -> None:
    study(lists={"inner.rate": [0.1, "x"], "algorithm": ["maml", "nope"]}, seeds=[0, 1])
    outcome = metalearn("sweep", "plan", "study.yaml")
    assert outcome.code == 2 and not Path("study").exists()
    lines = outcome.err.splitlines()
    assert len(lines) == 2
    assert "inner.rate=0.1 algorithm=nope seed=0 and 3 more: algorithm=nope" in lines[0]
    assert "inner.rate=x algorithm=maml seed=0 and 1 more: inner.rate=x" in lines[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "sweep needs one of plan, work"),
        (("wrok", "s"), "sweep needs one of plan, work"),
        (("plan",), "sweep plan needs a file"),
        (("plan", "none.yaml"), "none.yaml is not there; write the study into it"),
        (("work", "none"), "none is not there; metalearn sweep plan study.yaml makes a study"),
        (("work", "study.yaml"), "study.yaml is a file; metalearn sweep plan"),
        (("work", "."), ". holds no study (plan.jsonl is not there)"),
        (("work", ".", "minute=3"), "no option minute (did you mean minutes?) of sweep work"),
        (("work", ".", "minutes=-3"), "minutes=-3 must be a number above 0"),
        (("work", ".", "most=x"), "most=x must be a whole number, 1 or more"),
        (("work", ".", "wait=no"), "wait=no must be true or false"),
        (("status",), "sweep status needs the folder of a study"),
    ],
)
def test_words_that_cannot_be(words: tuple[str, ...], line: str, workplace: Path) -> None:
    study()
    assert line in metalearn("sweep", *words).mistake


def test_a_damaged_plan_is_one_line(workplace: Path) -> None:
    planned(seeds=[0, 1])
    lines = Path("s/plan.jsonl").read_text().splitlines()
    for bad in (lines[1][:-9], lines[1].replace('"seed": 1', '"seed": 2'), "[]",
                lines[1].replace('"runs/', '"../')):  # fmt: skip
        Path("s/plan.jsonl").write_text(f"{lines[0]}\n{bad}\n")
        assert "s/plan.jsonl: line 2 is damaged" in metalearn("sweep", "work", "s").mistake


def test_a_plan_of_an_older_version_is_worked_on_and_not_planned_twice(workplace: Path) -> None:
    planned()
    path = Path("s/plan.jsonl")
    held = json.loads(path.read_text())
    held["config"]["training"].pop("clock")  # as before there was one
    held["key"] = config_hash(held["config"])[:16]
    path.write_text(json.dumps(held) + "\n")
    assert (
        "1 runs in s/plan.jsonl, 0 of them new" in metalearn("sweep", "plan", "study.yaml", "s").out
    )
    assert metalearn("sweep", "work", "s").code == 0 and ends() == ["done"]


def test_what_fails_is_told_and_the_rest_goes_on(workplace: Path) -> None:
    # What shows only with the data: no classes, so nothing to classify.
    planned(lists={"algorithm": ["protonet", "maml"]}, seeds=[0, 1])
    outcome = metalearn("sweep", "work", "s")
    assert outcome.code == 1 and "4 runs ended here, 2 of them failed" in outcome.out
    assert outcome.err.count("failed: algorithm=protonet classifies; use") == 2
    assert sorted(result["seed"] for result in results().values()) == [0, 1]
    assert ends() == ["failed", "failed", "done", "done"]
    status = metalearn("sweep", "status", "s").out
    assert "4 runs: 2 done, 0 waiting, 2 failed\n" in status
    assert status.count("algorithm=protonet classifies; use algorithm=maml") == 2
    times = {path: path.stat().st_mtime_ns for path in Path("s/runs").rglob("*")}
    assert "0 runs ended here" in metalearn("sweep", "work", "s").out
    assert "2 failed runs wait again" in metalearn("sweep", "retry", "s").out
    assert "2 runs ended here, 2 of them failed" in metalearn("sweep", "work", "s", "most=2").out
    assert ends() == ["again+failed failed", "again+failed failed", "done", "done"]
    assert times == {path: path.stat().st_mtime_ns for path in Path("s/runs").rglob("*")}


def test_a_bug_keeps_its_traceback(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned()
    monkeypatch.setattr("metalearn.training.run._train", lambda *_: 1 / 0)
    outcome = metalearn("sweep", "work", "s")
    assert "failed: ZeroDivisionError: division by zero" in outcome.err
    assert "Traceback" not in outcome.err
    (run,) = read_plan(Path("s"))
    attempt = Claims(Path("s")).read()[run.key][0]
    assert "division by zero" in Claims(Path("s")).record(run.key, attempt)["traceback"]


LONG = {
    "seeds": [0, 1],
    "overrides": [
        *(o for o in TINY if "steps=" not in o and "validate_every" not in o),
        "training.steps=6", "training.validate_every=6", "training.checkpoint_every=1",
    ],
}  # fmt: skip
WAITING = """
import signal, threading
import metalearn.sweeps.heartbeat as heartbeat
from metalearn.cli import main
from metalearn.training import loop as run

heartbeat.BEAT, real = 0.05, run.save_checkpoint

def save(folder, step, state):
    real(folder, step, state)
    if step == 3:
        inner, came = signal.getsignal(signal.SIGTERM), threading.Event()
        signal.signal(signal.SIGTERM, lambda *given: (inner(*given), came.set()))
        print("at step 3", flush=True)
        came.wait()

run.save_checkpoint = save
main()
"""
"""A worker that waits for a signal after three steps of its first run."""


@contextmanager
def worker_at_step_3() -> Iterator[preloaded.Process]:
    with preloaded.Process(WAITING, "sweep", "work", "s") as worker:
        while "at step 3" not in (line := worker.stdout.readline()):
            assert line, worker.communicate()
        yield worker


def test_a_killed_worker_leaves_what_another_ends_bitwise(workplace: Path) -> None:
    planned(**{**LONG, "seeds": [1]})
    with worker_at_step_3() as worker:
        running = metalearn("sweep", "status", "s").out
        assert "1 runs: 0 done, 1 running, 0 waiting" in running and os.uname().nodename in running
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    assert "1 left" in metalearn("sweep", "status", "s").out
    outcome = metalearn("sweep", "work", "s")
    (name,) = results()
    assert outcome.code == 0 and f"resuming s/runs/{name} at step 3" in outcome.out
    assert ends() == ["- done"]
    assert metalearn("train", *LONG["overrides"], "seed=1", "run_dir=alone").code == 0
    alone = json.loads(Path("alone/result.json").read_text())
    assert results()[name]["weights_sha256"] == alone["weights_sha256"]


@pytest.mark.parametrize("how", ["sigterm", "stop"])
def test_a_worker_that_is_ended_leaves_a_checkpoint(how: str, workplace: Path) -> None:
    planned(**LONG)
    with worker_at_step_3() as worker:
        if how == "sigterm":
            worker.send_signal(signal.SIGTERM)
        else:
            assert "1 workers are asked to" in metalearn("sweep", "stop", "s").out
        out, err = worker.communicate()
        assert worker.returncode == (143 if how == "sigterm" else 0), err
    assert "after a checkpoint; the same command goes on from there" in out
    assert ends() == ["stopped", ""]
    assert "2 runs: 0 done, 2 waiting" in metalearn("sweep", "status", "s").out
    assert "no worker; metalearn sweep work s goes on" in metalearn("sweep", "stop", "s").out


def test_a_run_of_another_process_is_tried_later(workplace: Path) -> None:
    planned()
    (run,) = read_plan(Path("s"))
    code = "from pathlib import Path\nfrom metalearn.training.folder import lock_of\nimport sys\n"
    code += f"lock = lock_of(Path({str(Path('s', run.folder))!r}))\nprint(1, flush=True)\n"
    with preloaded.Process(code + "sys.stdin.read()") as other:
        assert other.stdout.readline() == "1\n"
        soon = "import metalearn.sweeps.worker as worker; worker._BUSY = 0.5; "
        with preloaded.Process(soon + preloaded.COMMAND, "sweep", "work", "s") as worker:
            while ends() != ["stopped"]:
                time.sleep(0.02)
            other.communicate()
            _, err = worker.communicate()
            assert worker.returncode == 0, err
    assert set(ends()[0].split()) == {"stopped", "done"}


def test_a_worker_ends_after_its_minutes(workplace: Path) -> None:
    planned(overrides=[*LONG["overrides"], "training.steps=1000000"])
    outcome = metalearn("sweep", "work", "s", "minutes=0.02")
    assert outcome.code == 0 and "ends: its minutes are over" in outcome.out
    assert ends() in (["stopped"], [""])  # or before its first run


def test_under_torchrun_each_process_is_a_worker(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned()
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    outcome = metalearn("sweep", "work", "s")
    assert outcome.code == 0 and ends() == ["done"]


def test_a_full_disk_ends_the_worker_and_fails_no_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(seeds=[0, 1])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "s/runs/x")

    with monkeypatch.context() as patch:
        patch.setattr("metalearn.training.run._train", full)
        line = metalearn("sweep", "work", "s").mistake
    assert line.startswith("cannot write s/runs/x (No space left on device): make room")
    assert ends() == ["stopped", ""]
    assert metalearn("sweep", "work", "s").code == 0 and ends() == ["stopped done", "done"]


def test_a_worker_computes_with_one_thread_or_as_many_as_are_asked_for(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr("metalearn.training.run._train", lambda *_: seen.append(
        torch.get_num_threads()) or 1 / 0)  # fmt: skip
    assert metalearn("sweep", "work", "s", "cpus=2").code == 1
    assert metalearn("sweep", "retry", "s").code == 0
    assert metalearn("sweep", "work", "s").code == 1
    assert seen == [2, 1] and torch.get_num_threads() == before
