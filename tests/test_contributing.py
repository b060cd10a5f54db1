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
        shutil.copytree(ROOT / name, tmp_path / name)  # and what is compiled of them
    for name in ("CONTRIBUTING.md", "README.md", "conftest.py", "pyproject.toml"):
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


def test_each_change_applies_and_all_run(copy: Path) -> None:
    """Each alone applies; their commands run as one, in a copy that has them all."""
    paths, wanted = list[str](), list[str]()
    for diff, _ in CHANGES.values():
        run(["git", "apply", "--check", "-"], copy, diff)
    for diff, (program, *arguments) in CHANGES.values():
        run(["git", "apply", "-"], copy, diff)
        assert program == "pytest"
        *files, option, expression = arguments
        assert option == "-k"
        paths += files
        wanted.append(expression)
    some = ["-k", " or ".join(f"({expression})" for expression in wanted)]
    told = run(
        [sys.executable, "-m", "pytest", "-v", "-n", "0", *dict.fromkeys(paths), *some], copy
    )
    passed = [line for line in told.splitlines() if "PASSED" in line]
    for expression in wanted:
        first = re.findall(r"\w+", expression)[0]
        assert any(first in line for line in passed), (first, told)
