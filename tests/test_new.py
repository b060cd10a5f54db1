"""`metalearn new` and `metalearn score`: a method outside the repository, found by entry point."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from metalearn.benchmarks.contract import contract
from metalearn.commands.building.config import conf_folder
from metalearn.commands.parts.compare_plan import plan
from tests.command import metalearn

SHORT = (
    "training.steps=2",
    "training.validate_every=2",
    "dataset.classes=60",
    "backbone.filters=4",
    "evaluation.episodes=4",
    "evaluation.validation_episodes=2",
)


def installed(folder: Path, name: str) -> None:
    """What an editable install leaves: the package on the path, and a note of its entry point."""
    note = folder / f"metalearn_{name}-0.1.0.dist-info"
    note.mkdir()
    (note / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: metalearn-{name}\nVersion: 0.1.0\n"
    )
    (note / "entry_points.txt").write_text(f"[metalearn.conf]\n{name} = metalearn_{name}.conf\n")


def run_its_test(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_it_keeps_the_contract()


@pytest.mark.parametrize("group", ["algorithm", "classifier"])
def test_a_new_method_is_tested_listed_and_scored(
    group: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"half_{group}"
    told = metalearn("new", group, name, "mine")
    assert told.code == 0 and "pip install -e mine" in told.out
    installed(workplace / "mine", name)
    monkeypatch.syspath_prepend(str(workplace / "mine"))
    run_its_test(workplace / f"mine/tests/test_{name}.py")
    assert len(Path(f"mine/metalearn_{name}/__init__.py").read_text().splitlines()) <= 50
    monkeypatch.setenv("COLUMNS", "220")
    assert f"{group}={name}" in metalearn("list", "algorithms").out
    if group == "classifier" and not (conf_folder() / "classifier").is_dir():
        return
    outcome = metalearn("score", name, *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("\n") == 1
    line = json.loads(outcome.out)
    assert (line["method"], line["contract"], line["episodes"]) == (f"{group}={name}", [], 4)
    assert 0 <= line["accuracy"] <= 1 and line["half_width"] >= 0
    made = plan([f"methods=[{name}]"])  # of `metalearn compare`
    assert made.methods == [name] and (name in made.runs) == (group == "algorithm")


def test_what_an_algorithm_does_not_keep_is_named(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metalearn("new", "algorithm", "peeking", "mine")
    path = workplace / "mine/metalearn_peeking/__init__.py"
    path.write_text(path.read_text().replace("query.weight)", "None)"))
    installed(workplace / "mine", "peeking")
    monkeypatch.syspath_prepend(str(workplace / "mine"))
    peeking = importlib.import_module("metalearn_peeking").Peeking
    assert contract(peeking) == ["padding of weight 0 has no part"]


@pytest.mark.parametrize(
    "command, told",
    [
        ("new", "write metalearn new algorithm|classifier <name> [folder]"),
        ("new algoritm mine", "(did you mean algorithm?)"),
        ("new algorithm Mine", "Mine cannot name a method; use small letters, digits and _"),
        ("new algorithm ../mine", "cannot name a method"),
        ("new algorithm maml", "algorithm=maml is there already; use another name"),
        ("new algorithm mine .", ". is there already; name a new folder after mine"),
        ("score", "write metalearn score <name>"),
        ("score mam1", "no method mam1 (did you mean maml?); see metalearn list algorithms"),
    ],
)
def test_mistakes_are_one_line(command: str, told: str, workplace: Path) -> None:
    assert told in metalearn(*command.split()).mistake
    assert not list(workplace.iterdir())


def test_a_package_without_its_folder_is_named(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(workplace, "gone")
    monkeypatch.syspath_prepend(str(workplace))
    told = metalearn("list", "algorithm").mistake
    assert told.startswith("no config folder pkg://metalearn_gone.conf; correct hydra.searchpath")


@pytest.mark.slow
def test_it_is_built_and_installed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("uv") is None:
        pytest.skip("no uv on PATH")
    metalearn("new", "algorithm", "built", "mine")
    built = subprocess.run(
        ["uv", "build", "--wheel", "--out-dir", "dist", "mine"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode and "fetch" in built.stderr:
        pytest.skip("no network for the build's own requirements")
    (wheel,) = (workplace / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(workplace / "installed")
    monkeypatch.syspath_prepend(str(workplace / "installed"))
    line = json.loads(metalearn("score", "built", *SHORT).out)
    assert line["contract"] == [] and line["method"] == "algorithm=built"
    assert sys.modules["metalearn_built"].__file__.startswith(str(workplace / "installed"))
