"""Each change that CONTRIBUTING.md shows applies to this checkout, and the line below it runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = re.compile(
    r"^## Add an? ([^\n]+)\n(?:(?!^## ).)*?^```diff\n(.*?)^```\n\n((?:    [^\n]+\n)+)", re.M | re.S
)
CHANGES = {
    what: (diff, shlex.split(command.replace("\\\n", " ")))
    for what, diff, command in SECTION.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What a change may touch, apart from this checkout."""
    for name in ("conf", "metalearn", "scripts", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CONTRIBUTING.md", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(command: list[str], folder: Path, text: str | None = None) -> str:
    """What a command prints in `folder`, where the package is the one that lies there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    own = {"PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, **own},
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_there_is_a_change_of_each_kind() -> None:
    kinds = {"algorithm", "classifier", "meta-gradient strategy", "data set", "command"}
    assert set(CHANGES) == kinds


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_applies_and_runs(what: str, copy: Path) -> None:
    diff, (program, *arguments) = CHANGES[what]
    run(["git", "apply", "-"], copy, diff)
    told = run([sys.executable, "-m", program, "-q", "-n", "0", *arguments], copy)
    assert re.search(r"^[1-9]\d* passed(, \d+ deselected)? in", told, re.M), told
