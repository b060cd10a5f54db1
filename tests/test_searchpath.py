"""Config groups of another project: by hydra.searchpath, and by an entry point of it."""

import sys
from pathlib import Path

import pytest

from metalearn.commands.building.config import compose
from tests.command import metalearn


@pytest.fixture
def project(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `owned` with an algorithm, and a folder with another of that name."""
    conf = workplace / "owned" / "conf"
    (conf / "algorithm").mkdir(parents=True)
    (conf / "__init__.py").touch()
    (workplace / "owned" / "__init__.py").touch()
    (conf / "algorithm" / "owned.yaml").write_text(
        "# Of the package.\ndefaults: [maml]\nsteps: 2\n"
    )
    other = workplace / "other" / "algorithm"
    other.mkdir(parents=True)
    (other / "alien.yaml").write_text("# Of the folder.\ndefaults: [maml]\nsteps: 3\n")
    monkeypatch.syspath_prepend(workplace)
    yield workplace
    for name in [name for name in sys.modules if name.partition(".")[0] == "owned"]:
        del sys.modules[name]


def install(project: Path, package: str) -> None:
    facts = project / "owned-1.0.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: owned\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[metalearn.conf]\nowned = {package}\n")


@pytest.mark.parametrize("where", ["file://{}/other", "pkg://owned.conf"])
def test_list_takes_the_search_path(project: Path, where: str) -> None:
    path = f"hydra.searchpath=[{where.format(project)}]"
    words = "Of the folder." if "other" in where else "Of the package."
    for command in (["list", "algorithm"], ["list"]):
        assert words not in metalearn(*command).out
        assert words in metalearn(*command, path).out
    assert metalearn("data", "list", path).code == 0


def test_an_entry_point_is_always_there(project: Path) -> None:
    assert "is not known" in metalearn("train", "algorithm=owned").mistake
    install(project, "owned.conf")
    assert "Of the package." in metalearn("list", "algorithm").out
    assert compose(["algorithm=owned"])["algorithm"]["steps"] == 2
    shown = metalearn("train", "algorithm=owned", "--cfg", "job", "-p", "algorithm")
    assert shown.code == 0 and "steps: 2" in shown.out


def test_what_is_not_there_is_one_line(project: Path) -> None:
    for value in ("[file:///nowhere]", "[pkg://nowhere]"):
        line = metalearn("list", f"hydra.searchpath={value}").mistake
        assert f"no config folder {value[1:-1]}; correct hydra.searchpath" in line
    assert "must be a list" in metalearn("list", "hydra.searchpath=here").mistake
    install(project, "gone.conf")
    assert "the entry point metalearn.conf" in metalearn("list").mistake
