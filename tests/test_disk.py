"""Where nothing can be written: one line, exit code 2, and the same command goes on afterwards."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metalearn import cli
from tests.command import metalearn

TRAIN = (
    "train", "dataset=sinusoid", "debug=fast", "batching=loop",
    "tracker=disabled", "tracker.plots=false", "run_dir=run",
    "training.steps=3", "training.checkpoint_every=1", "evaluation.untrained=false",
)  # fmt: skip


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def mounted(workplace: Path) -> Iterator[Path]:
    """A disk of its own, of 24 KiB."""
    disk = workplace / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", disk], check=False)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


# From the first file of a run to its last plot.
@pytest.mark.parametrize("size", [0, 12_000])
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on(workplace: Path, size: int) -> None:
    with full_after(size):
        line = metalearn(*TRAIN).mistake
    assert line.startswith("cannot write") and "(File too large): make room; " in line
    outcome = metalearn(*TRAIN)
    assert outcome.code == 0, outcome.err
    assert Path("run/result.json").exists()


def test_a_real_disk(mounted: Path) -> None:
    asked = (*TRAIN, f"run_dir={mounted}/run")
    assert f"cannot write {mounted}/run (No space left on device)" in metalearn(*asked).mistake
    subprocess.run(["mount", "-o", "remount,size=8m", mounted], check=True)
    assert metalearn(*asked).code == 0
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    assert "Read-only file system" in metalearn("evaluate", f"run={mounted}/run").mistake
    assert "is read-only" in metalearn(*asked, "resume=never").mistake


def test_every_member_of_a_sweep_says_so(workplace: Path) -> None:
    Path("locked").mkdir()
    Path("locked/run").write_text("a file")
    outcome = metalearn(*TRAIN[:1], "-m", *TRAIN[1:], "run_dir=locked/run/x", "seed=0,1")
    assert outcome.code == 1 and outcome.err.count("\n") == 2 and "Traceback" not in outcome.err


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's files need root")
def test_another_users_folder(tmp_path: Path, workplace: Path) -> None:
    assert metalearn(*TRAIN).code == 0
    Path("run/result.json").unlink()
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o755)
    os.setresuid(65534, 65534, 0)
    try:
        foreign = metalearn(*TRAIN).mistake
        measured = metalearn("evaluate", "run=run").mistake
    finally:
        os.setresuid(0, 0, 0)
    assert "is read-only; choose another" in foreign
    assert "run/evaluations (Permission denied)" in measured
    assert metalearn(*TRAIN).code == 0


def test_output_to_a_full_disk(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metalearn", "list", "head"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err
